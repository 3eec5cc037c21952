// Package fault names the points of a mutating path at which a test kills the
// process, one by one.
//
// A point is declared once, as a package variable, and hit where the code passes it:
//
//	var afterIntent = fault.New("volume.create.intent-recorded")
//	…
//	afterIntent.Hit()
//
// In an ordinary build a point is nothing at all. Built with `-tags faults`, the
// process kills itself with SIGKILL at the point that the environment names:
//
//	ORLOP_FAULT=volume.create.intent-recorded      the first time it is passed
//	ORLOP_FAULT=volume.create.intent-recorded:3    the third time
//
// Names are domain.operation.what-has-just-happened. A binary built with the tag
// lists its points (List), so that a test can drive every one of them and fail
// on one that nothing reaches.
//
// Several processes share one environment; a point kills only the process that
// passes it. ORLOP_FAULT_ONCE=FILE makes the kill happen once over restarts: the
// file is made just before it, and where it exists no point kills.
package fault
