"""The competition's experiment: its plates, compounds, cells and files, and the truth of them."""
