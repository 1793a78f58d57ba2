"""Knowledge distillation: what a student learns from a teacher, one method a file."""
