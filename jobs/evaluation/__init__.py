"""What is measured and scored of a trained student, and the reports of it."""
