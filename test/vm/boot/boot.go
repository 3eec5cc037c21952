// Package boot is what the test machine's host side and its init in the guest agree on.
package boot

import (
	"path"
	"strings"
)

// ConfigFile is where the initial ramdisk has a Config in JSON.
const ConfigFile = "/config.json"

// Dir is a directory in the guest's root for the harness's own things. The init binary
// is there as Dir/init, and TMPDIR is Dir/tmp, a tmpfs: the root is an overlay, and
// there can be no overlay with its upper directory on an overlay.
const Dir = "/run/orlop-vm"

// Port is the name of the virtio-serial port that carries frames both ways.
const Port = "orlop"

// Tag names the shared filesystem.
const Tag = "host"

// Config tells the guest what to be.
type Config struct {
	Systemd bool // systemd is process 1, and commands run in a unit under it

	BootModules []string // files in the initial ramdisk, in the order in which to load them
	Modules     []string // names, loaded once the host's tree is mounted
	Index       string   // file of an Index in JSON, in the host's tree
}

// Command is what the guest runs; one at a time.
type Command struct {
	Argv []string
	Env  []string // whole environment, besides TMPDIR
	Dir  string
}

// Status is how a command ended.
type Status struct {
	Code  int    // exit code; 128 plus the signal's number for a command that died of one
	Error string // what kept the command from being run, or the machine from being prepared
}

// Index is what modules.dep and modules.alias are to modprobe. It is made from the
// modules themselves, so that no depmod is needed.
type Index struct {
	Files   map[string]string   // module name → file
	Depends map[string][]string // module name → names
	Aliases map[string]string   // pattern → module name
}

// Resolve returns the module that is called name, or has an alias that matches it.
func (x *Index) Resolve(name string) (module string, ok bool) {
	name = Normal(name)
	if _, ok := x.Files[name]; ok {
		return name, true
	}
	if m, ok := x.Aliases[name]; ok {
		return m, true
	}
	for pattern, m := range x.Aliases {
		if strings.ContainsAny(pattern, "*?[") {
			if ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x01"), strings.ReplaceAll(name, "/", "\x01")); ok && err == nil {
				return m, true
			}
		}
	}
	return "", false
}

// Order returns the files to load for module, what it depends on first.
func (x *Index) Order(module string) (files []string) {
	seen := map[string]bool{}
	var add func(string)
	add = func(m string) {
		if seen[m] {
			return
		}
		seen[m] = true
		for _, d := range x.Depends[m] {
			add(d)
		}
		if f := x.Files[m]; f != "" {
			files = append(files, f)
		}
	}
	add(module)
	return files
}

// Normal writes a module's name as the kernel does.
func Normal(name string) string { return strings.ReplaceAll(name, "-", "_") }
