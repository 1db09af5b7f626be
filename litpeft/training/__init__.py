"""Training with several processes: process group, sharding, failure messages; and Lightning's training loops."""
