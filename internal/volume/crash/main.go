// Crash goes through everything that volumes do, so that a test can kill it at
// every point of it. It is built with `-tags faults` by the tests of package volume.
//
//	crash points           lists the fault points of volumes
//	crash run ROOT RUN     goes through it, from wherever the last one was killed
//
// What has been acknowledged is printed, one word a line; what an application
// would have lost is an error.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/volume"
	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "points":
		for _, p := range fault.List() {
			if strings.HasPrefix(p, "volume.") {
				fmt.Println(p)
			}
		}
	case len(os.Args) == 4 && os.Args[1] == "run":
		err = run(context.Background(), os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: crash points | crash run ROOT RUN")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		os.Exit(1)
	}
}

const mib = 1 << 20

// Payload is what the application writes.
var payload = bytes.Repeat([]byte("what was acknowledged must be there "), 4096)

func run(ctx context.Context, root, dir string) error {
	// Filesystems then grow unmounted, in a copy: the longer way, and the same on every machine.
	if err := dropSysResource(); err != nil {
		return fmt.Errorf("drop CAP_SYS_RESOURCE: %w", err)
	}
	durable, err := store.Open(filepath.Join(root, "state.db"), store.Durable)
	if err != nil {
		return err
	}
	volatile, err := store.Open(filepath.Join(dir, "state.db"), store.Volatile)
	if err != nil {
		return err
	}
	o := volume.Options{
		Root: root, Run: dir, DB: durable, Volatile: volatile, Pool: volume.PoolImage, PoolSizeBytes: 512 * mib,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	v, err := volume.Open(ctx, o)
	if err != nil {
		return err
	}
	if err := work(ctx, v, filepath.Join(root, "ack")); err != nil {
		return err
	}
	if err := v.Close(); err != nil {
		return err
	}
	o.PoolSizeBytes = 600 * mib
	if v, err = volume.Open(ctx, o); err != nil {
		return fmt.Errorf("open with a larger pool: %w", err)
	}
	ack("pool-grown")
	return v.Close()
}

func ack(what string) { fmt.Println(what) }

// work does each step only if an earlier run has not done it; acks is a directory of what was acknowledged.
func work(ctx context.Context, v *volume.Volumes, acks string) error {
	if err := os.MkdirAll(acks, 0o700); err != nil {
		return err
	}
	done := func(step string) bool { _, err := os.Stat(filepath.Join(acks, step)); return err == nil }
	finish := func(step string) error {
		ack(step)
		return os.WriteFile(filepath.Join(acks, step), nil, 0o600)
	}
	claim := func(name string, mode volume.Mode, size int64) error {
		_, err := v.CreateClaim(ctx, volume.Claim{Namespace: "default", Name: name, SizeBytes: size, Mode: mode, AccessModes: []string{volume.ReadWriteOnce}})
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"created", func() error { return claim("data", volume.Filesystem, 32*mib) }},
		{"written", func() error {
			path, err := v.Publish(ctx, "default", "data", "pod-1", false)
			if err != nil {
				return err
			}
			return write(filepath.Join(path, "file"), os.O_CREATE|os.O_TRUNC)
		}},
		{"scratch-written", func() error {
			path, err := v.PublishScratch(ctx, "pod-1", "tmp", 16*mib)
			if err != nil {
				return err
			}
			return write(filepath.Join(path, "file"), os.O_CREATE|os.O_TRUNC)
		}},
		{"scratch-read", func() error {
			path, err := v.PublishScratch(ctx, "pod-1", "tmp", 16*mib)
			if err != nil {
				return err
			}
			return read(filepath.Join(path, "file"))
		}},
		{"raw-created", func() error { return claim("raw", volume.Block, 16*mib) }},
		{"raw-written", func() error {
			path, err := v.Publish(ctx, "default", "raw", "pod-1", false)
			if err != nil {
				return err
			}
			return write(path, 0)
		}},
		{"read", func() error {
			path, err := v.Publish(ctx, "default", "data", "pod-2", true)
			if err != nil {
				return err
			}
			return read(filepath.Join(path, "file"))
		}},
		{"reader-gone", func() error { return v.Unpublish(ctx, "default", "data", "pod-2") }},
		{"expanded", func() error { return claim("data", volume.Filesystem, 48*mib) }},
		{"read-again", func() error {
			path, err := v.Publish(ctx, "default", "data", "pod-1", false)
			if err != nil {
				return err
			}
			return read(filepath.Join(path, "file"))
		}},
		{"writer-gone", func() error { return v.Unpublish(ctx, "default", "data", "pod-1") }},
		{"raw-read", func() error {
			path, err := v.Publish(ctx, "default", "raw", "pod-1", false)
			if err != nil {
				return err
			}
			return read(path)
		}},
		{"raw-gone", func() error { return v.UnpublishAll(ctx, "pod-1") }},
		{"raw-deleted", func() error {
			err := v.DeleteClaim(ctx, "default", "raw")
			if errors.Is(err, errs.NotFound) {
				return nil // a run before this one did it and died before it could say so
			}
			return err
		}},
	} {
		if done(step.name) {
			continue
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("step %s: %w", step.name, err)
		}
		if err := finish(step.name); err != nil {
			return err
		}
	}
	return nil
}

func write(path string, flags int) error {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(payload); err != nil {
		return err
	}
	return f.Sync()
}

func read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, len(payload))
	if n, _ := f.Read(got); !bytes.Equal(got[:n], payload) {
		return fmt.Errorf("%s does not hold what was written", path)
	}
	return nil
}

// dropSysResource takes CAP_SYS_RESOURCE from every thread.
func dropSysResource() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	const bit = 1 << (unix.CAP_SYS_RESOURCE % 32)
	data[0].Effective &^= bit
	data[0].Permitted &^= bit
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return errno
	}
	return nil
}
