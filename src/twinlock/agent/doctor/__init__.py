"""`twinlock-agent doctor`: looks at a device and says what is wrong and how to mend it."""
