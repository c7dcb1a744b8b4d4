"""Attribution with everything but the chosen parts frozen: operators, adjoints, rows, estimates."""
