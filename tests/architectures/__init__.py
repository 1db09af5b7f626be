"""The matrix of architectures: tiny random models of transformers with every strategy, from fit to export."""
