package main

import (
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Checkpoint and restore are refused by name, with runc's flags understood, so that an
// engine passes on why.

func checkpointCommand(f *flags) func(*app, []string) error { return refused(f, "checkpoint") }

func restoreCommand(f *flags) func(*app, []string) error { return refused(f, "restore") }

func refused(f *flags, what string) func(*app, []string) error {
	var s string
	var b bool
	for _, name := range []string{"image-path", "work-path", "parent-path", "status-fd", "page-server", "manage-cgroups-mode", "empty-ns", "bundle",
		"console-socket", "pid-file", "lsm-profile", "lsm-mount-context"} {
		f.str(&s, name, "", "VALUE", "as with runc")
		if name == "bundle" {
			f.short("b")
		}
	}
	for _, name := range []string{"leave-running", "tcp-established", "ext-unix-sk", "shell-job", "lazy-pages", "file-locks", "pre-dump", "auto-dedup",
		"no-subreaper", "no-pivot"} {
		f.bool(&b, name, "", "as with runc")
	}
	f.bool(&b, "detach", "d", "as with runc")
	return func(a *app, args []string) error {
		if what == "checkpoint" {
			if _, err := a.load(args[0]); err != nil {
				return err
			}
		}
		return errs.New(errs.Unsupported, "%s is not supported by this version; use runc with CRIU for containers that have to be saved", what)
	}
}
