package main

import (
	"os"

	"github.com/orlop-io/orlop/internal/base/sysmon"
)

// Two things have to be said before Go's runtime begins, to be of any use.
//
// It makes threads for as many processors as there are before main begins, and has every
// goroutine that it wakes run on another one. A command that does one thing after the other gains nothing by
// that and pays a twentieth of a run for it: threads, their stacks and caches of memory, and
// processors that sleep and are woken. runtime.GOMAXPROCS comes when they are made.
//
// And its monitor thread looks every 20 µs whether there is anything to do (package sysmon), also while packages
// initialise. It has its timer slack from the first thread.
//
// So a binary that is linked with -E main.entry begins with entry, which sets the slack, adds
// GOMAXPROCS to the environment, and goes on where Go's programs begin. What the caller has
// set stands before it and counts. Without the flag all is as usual.

// oneProcessor is the variable's value, as nobody else writes it.
const oneProcessor = "01"

// slack is the caller's, which entry has replaced; not above 0 where it has not.
var slack int

// begun undoes for others what entry did.
func begun() {
	if os.Getenv("GOMAXPROCS") == oneProcessor {
		os.Unsetenv("GOMAXPROCS")
	}
	if slack > 0 {
		sysmon.Calmed(slack)
	} else {
		sysmon.Calm()
	}
}
