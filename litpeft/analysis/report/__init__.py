"""A comparison as a page: one HTML file that works offline, or Markdown with pictures. Needs no torch."""
