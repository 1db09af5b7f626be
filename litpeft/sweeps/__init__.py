"""Many runs from one file: what they are, where they stand, and how they are started."""
