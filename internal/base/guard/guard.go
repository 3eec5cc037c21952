// Package guard names protections, so that a test can take each of them out and show
// that the attack that it is there for then succeeds: a security test that passes with
// and without the protection shows nothing.
//
// A guard is declared once, as a package variable, and asked where it protects:
//
//	var InRoot = guard.New("paths.in-root")
//	…
//	if InRoot.On() {
//		resolve |= unix.RESOLVE_IN_ROOT
//	}
//
// In an ordinary build a guard is nothing at all: On is the constant true, the compiler
// leaves out the other branch, and no program can turn a guard off. Built with
// `-tags guards`, all are on as well, but for those that Without, or the environment that
// Environ made for a child process, names:
//
//	ORLOP_WITHOUT=paths.in-root,init.undumpable
//
// With the tag, Window waits for a moment. It stands between the two steps that a race
// has to come between, whether the guard is on or off: what a guard closes must be shown
// closed where the window would otherwise be wide open.
//
// The package is linked into orlop-init: it must not import os or fmt.
package guard
