"""Commands that are dispatched before LightningCLI: one file a verb, each with `main(arguments) -> exit code`."""
