"""Default timeouts of failure detection, in seconds: `recovery.hang_after_s` and `recovery.user_code_s`."""

HANG_AFTER_S, USER_CODE_S = 5.0, 1800.0
