"""What each verb does: the rooms in order, and what a person is shown."""
