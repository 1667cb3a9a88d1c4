"""End visitor sessions at Voyado Elevate, reliably."""
