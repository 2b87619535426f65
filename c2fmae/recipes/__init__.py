"""Named experiments: functions that return a full config. Nothing here yet."""
