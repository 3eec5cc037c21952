// Package cgroup makes control groups, puts processes into them, sets and reads
// what they limit, and takes them away again.
//
// It knows three layouts (cgroups(7)), and finds out once, from the mount table,
// which one the host has:
//
//   - V2: one hierarchy with every controller, as every current distribution boots.
//   - V1: one hierarchy per controller or bundle of controllers.
//   - Hybrid: V1, and beside it a cgroup2 mount, mostly without controllers. What the
//     core of cgroup2 does without any controller (CPU time, freezing, killing,
//     pressure, device programs) is then taken from there: a group in it costs one
//     directory and stands for three v1 hierarchies.
//
// On V2 a second choice is who makes the directories: this package (Cgroupfs) or
// systemd, asked over D-Bus for slices and scopes (Systemd). With either, values are
// written into the files of the group.
//
// Nothing here mounts, remounts or moves what it did not make: groups are made below
// the paths that are given, and removed.
//
// docs/design/cgroup.md has the measurements behind the choices.
package cgroup

import (
	"maps"
	"slices"
)

// Mode is the layout of the host's hierarchies.
type Mode string

const (
	V1     Mode = "v1"
	V2     Mode = "v2"
	Hybrid Mode = "hybrid"
)

// Driver says who makes the groups.
type Driver string

const (
	// Auto is Systemd where systemd is process 1 and the layout is V2, Cgroupfs
	// elsewhere. The empty Driver means the same.
	Auto Driver = "auto"
	// Cgroupfs makes directories itself.
	Cgroupfs Driver = "cgroupfs"
	// Systemd asks systemd for transient slices and scopes. V2 only.
	Systemd Driver = "systemd"
)

// Options says how Open looks at the host. The zero value is right for a daemon.
type Options struct {
	Driver Driver // who makes groups; "" is Auto
	// Root is where the hierarchies are mounted; "" is /sys/fs/cgroup.
	Root string
}

// Layout is what Open found.
type Layout struct {
	Mode   Mode
	Driver Driver
	// Unified is where cgroup2 is mounted, "" in V1.
	Unified string
	// Controllers tells where each controller is mounted ("memory" →
	// "/sys/fs/cgroup/memory"). On V2 all of them are at Unified.
	Controllers map[string]string
}

// String is for people: "hybrid, driver cgroupfs".
func (l Layout) String() string { return string(l.Mode) + ", driver " + string(l.Driver) }

// Names returns the names of the controllers, sorted.
func (l Layout) Names() []string { return slices.Sorted(maps.Keys(l.Controllers)) }
