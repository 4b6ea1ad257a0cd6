"""Every compared method: its budget, its PEFT configuration, its cost."""
