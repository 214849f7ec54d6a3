"""The checks of the contract, one file a role: functions that raise an ``AssertionError`` where a part breaks one."""
