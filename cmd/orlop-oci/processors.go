package main

import "os"

// The runtime makes threads for as many processors as there are before main begins, and has
// every goroutine that it wakes run on another one. A command that does one thing after the other
// gains nothing by that and pays a twentieth of a run for it: threads, their stacks and caches of
// memory, and processors that sleep and are woken. What is set later (runtime.GOMAXPROCS) comes when they are made.
//
// So a binary that is linked with -E main.entry begins with entry, which adds a variable to the
// environment and goes on where Go's programs begin. What the caller has set stands before it
// and counts. Without the flag all is as usual.

// oneProcessor is the variable's value, as nobody else writes it.
const oneProcessor = "01"

// forget takes the variable away, which is not for those whom a command starts.
func forget() {
	if os.Getenv("GOMAXPROCS") == oneProcessor {
		os.Unsetenv("GOMAXPROCS")
	}
}
