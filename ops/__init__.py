"""What operators run, against a stack in AWS or the embedded one."""
