"""Write a comparison as an HTML page that works offline, or as Markdown with pictures. Does not import torch."""
