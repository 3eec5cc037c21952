package executor

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// MountOptions are the options that mounts of a specification may have besides those of
// their filesystems, sorted.
func MountOptions() []string {
	list := []string{"bind", "rbind", "tmpcopyup", "defaults", "remount", "loud", "silent", "acl", "noacl", "async", "nomand", "iversion", "noiversion",
		"idmap", "ridmap", "dirsync", "lazytime", "nolazytime", "mand", "sync"}
	for name := range attrs {
		list = append(list, name, "r"+name)
	}
	for name := range propagations {
		list = append(list, name, "r"+name)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Capabilities are those that this build and this kernel know.
func Capabilities() []string {
	for i := range capNames {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err != nil {
			return slices.Clone(capNames[:i])
		}
	}
	return slices.Clone(capNames)
}

// Namespaces are the kinds of namespaces that can be made or joined on this kernel.
func Namespaces() []string {
	var list []string
	for kind := range maps.Keys(nsFlags) {
		file := map[string]string{"network": "net", "mount": "mnt"}[string(kind)]
		if file == "" {
			file = string(kind)
		}
		if unix.Access("/proc/self/ns/"+file, unix.F_OK) == nil {
			list = append(list, string(kind))
		}
	}
	slices.Sort(list)
	return list
}

// MemoryPolicyModes and MemoryPolicyFlags are those of set_mempolicy(2), sorted.
func MemoryPolicyModes() []string { return sortedNames(memoryModes) }

// MemoryPolicyFlags is described at MemoryPolicyModes.
func MemoryPolicyFlags() []string { return sortedNames(memoryFlags) }

func sortedNames[K ~string, V any](m map[K]V) []string {
	var list []string
	for name := range m {
		list = append(list, string(name))
	}
	slices.Sort(list)
	return list
}
