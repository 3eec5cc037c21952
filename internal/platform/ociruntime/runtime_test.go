package ociruntime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// script is a runtime that is a shell script.
func script(t *testing.T, text string) *Container {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Container{Runtime: &Runtime{Name: "test", Path: path, Root: filepath.Join(dir, "root"), Timeout: 5 * time.Second}, ID: "one", Dir: dir, Sockets: dir}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		kind         *errs.Kind
		want         string
	}{
		{"standard error", "echo first >&2; echo second >&2; exit 1", errs.FailedPrecondition, ": second"},
		{"log", `while [ "$1" != --log ]; do shift; done; echo '{"level":"error","msg":"from the log"}' >>$2; echo '{"level":"warning","msg":"no error"}' >>$2; echo other >&2; exit 1`,
			errs.FailedPrecondition, ": from the log"},
		{"log of text", `while [ "$1" != --log ]; do shift; done; echo 'plain words' >>$2; exit 1`, errs.FailedPrecondition, ": plain words"},
		{"nothing", "exit 3", errs.FailedPrecondition, "exit status 3 without a word"},
		{"a signal", "kill -9 $$", errs.FailedPrecondition, "signal: killed"},
		{"no program, as runc says it", `echo 'exec: "/x": stat /x: no such file or directory' >&2; exit 1`, errs.NotFound, "/x"},
		{"no program, as crun says it", "echo 'executable file `x` not found in $PATH: No such file or directory' >&2; exit 1", errs.NotFound, "not found"},
		{"no permission", `echo 'exec: "/x": permission denied' >&2; exit 1`, errs.PermissionDenied, "permission denied"},
		{"much", "yes | head -c 100000 | tr -d '\\n' >&2; exit 1", errs.FailedPrecondition, "yyy …"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := script(t, tt.script)
			err := c.Start(context.Background())
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "runtime handler test: "+c.Path+" start") {
				t.Errorf("%v (%v)", err, errs.KindOf(err))
			}
			if left, _ := filepath.Glob(c.Dir + "/log-*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// What is told, and in which order.
func TestCommandLine(t *testing.T) {
	c := script(t, `calls="${0%/*}/calls"
echo "$@" >>$calls
env | grep ORLOP_ >&2 && exit 1
case "$*" in *" state "*) echo '{"status":"running"}';; *" update "*) cat >>$calls; echo >>$calls;; esac
exit 0`)
	c.Args, c.Systemd = []string{"--first"}, true
	t.Setenv("ORLOP_FAULT", "x")
	ctx := context.Background()
	limit := int64(5)
	st, err := c.State(ctx)
	if st != specs.StateRunning {
		t.Errorf("state %q", st)
	}
	err = errors.Join(err, c.Kill(ctx, unix.SIGTERM, false), c.Kill(ctx, unix.SIGHUP, true), c.Pause(ctx), c.Resume(ctx),
		c.Update(ctx, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}), c.Delete(ctx))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.Dir + "/calls")
	if err != nil {
		t.Fatal(err)
	}
	log := regexp.MustCompile(regexp.QuoteMeta(c.Dir) + "/log-[0-9]+")
	options := "--first --root " + c.Root + " --log LOG --log-format json --systemd-cgroup "
	want := options + "state one\n" + options + "kill one 15\n" + options + "kill --all one 1\n" + options + "pause one\n" + options + "resume one\n" +
		options + "update --resources - one\n{\"pids\":{\"limit\":5}}\n" + options + "delete --force one\n"
	if got := log.ReplaceAllString(string(raw), "LOG"); got != want {
		t.Errorf("calls:\n%s\nwant:\n%s", got, want)
	}
}

// A command that does not end is killed with all that it has started, at its limit or when
// the caller gives up.
func TestTimeout(t *testing.T) {
	c := script(t, "sleep 1000 & echo $! >$0.pid; echo going on >&2; sleep 1000")
	c.Timeout = 300 * time.Millisecond
	err := c.Start(context.Background())
	if !errors.Is(err, errs.Timeout) || !strings.Contains(err.Error(), "start did not end within 300ms and was killed; it said: going on") {
		t.Errorf("%v", err)
	}
	gone(t, c.Path+".pid")
	c.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := c.Pause(ctx); err == nil {
		t.Error("no error")
	}
	gone(t, c.Path+".pid")
	// Ends do without it sooner than other commands.
	if c.Timeout = time.Hour; min(c.Limit(), endTimeout) != endTimeout {
		t.Error("the limit of ends")
	}
	if (&Runtime{}).Limit() != DefaultTimeout {
		t.Error("the limit where none is given")
	}
}

func gone(t *testing.T, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d goes on", pid)
		}
	}
}

// What a runtime that fails leaves of a container is removed.
func TestDelete(t *testing.T) {
	c := script(t, "exit 1")
	if err := os.MkdirAll(filepath.Join(c.Root, "one", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.Root, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(context.Background()); err == nil {
		t.Error("no error")
	}
	if left, _ := os.ReadDir(c.Root); len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left: %v", left)
	}
}

// A process that a runtime claims to have made, and a terminal that it sends.
func TestProcess(t *testing.T) {
	ctx := context.Background()
	c := script(t, `while [ "$1" != --pid-file ]; do shift; done; echo 42 >$2; echo said`)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := c.Create(ctx, [3]*os.File{nil, w, nil}, false)
	w.Close()
	said := make([]byte, 64)
	n, _ := r.Read(said)
	if err != nil || s.PID != 42 || s.Terminal != nil || string(said[:n]) != "said\n" {
		t.Errorf("%+v %v %q", s, err, said[:n])
	}
	if _, err := c.Create(ctx, [3]*os.File{}, true); err == nil || !strings.Contains(err.Error(), "sent no terminal") {
		t.Errorf("no terminal: %v", err)
	}
	c = script(t, "exit 0")
	if _, err := c.Create(ctx, [3]*os.File{}, false); err == nil || !strings.Contains(err.Error(), "wrote no process") {
		t.Errorf("no process: %v", err)
	}
	if left, _ := filepath.Glob(c.Dir + "/*-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	stale, err := listen(c.Sockets)
	if err != nil {
		t.Fatal(err)
	}
	stale.l.SetUnlinkOnClose(false)
	stale.l.Close()
	if err := SweepConsoles(c.Sockets); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(c.Sockets + "/" + consolePrefix + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFeatures(t *testing.T) {
	ctx := context.Background()
	for text, want := range map[string]Features{
		`{}`: {},
		`{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}`:  {true, true},
		`{"mountOptions":["ro"],"linux":{"mountExtensions":{"idmap":{"enabled":false}}}}`:       {},
		`{"mountOptions":["rro"],"linux":{"namespaces":["user"],"mountExtensions":{}},"x":[1]}`: {true, false},
	} {
		c := script(t, "echo '"+text+"'")
		if got, err := c.Features(ctx); err != nil || got != want {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	for text, kind := range map[string]*errs.Kind{"echo no such command >&2; exit 1": errs.Unsupported, "echo words": errs.Unsupported} {
		if got, err := script(t, text).Features(ctx); !errors.Is(err, kind) || got != (Features{}) {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
	if _, err := (&Runtime{Name: "a", Path: "/no/such/runtime"}).Features(ctx); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a runtime that is missing: %v", err)
	}
	// As the distribution's says it.
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatalf("runc is needed: %v", err)
	}
	if got, err := (&Runtime{Name: "runc", Path: path, Root: t.TempDir()}).Features(ctx); err != nil || !got.RecursiveReadOnly {
		t.Errorf("runc: %+v %v", got, err)
	}
}

func FuzzParseFeatures(f *testing.F) {
	f.Add([]byte(`{"mountOptions":["rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}`))
	f.Add([]byte(`{"linux":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got, err := parseFeatures(raw); err != nil && got != (Features{}) {
			t.Errorf("%+v with %v", got, err)
		}
	})
}

func FuzzLastError(f *testing.F) {
	f.Add([]byte("{\"level\":\"error\",\"msg\":\"x\"}\n"))
	f.Add([]byte("words\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if got := lastError(raw); len(got) > maxReason+8 || strings.ContainsRune(got, '\n') && !bytes.Contains(raw, []byte(`\n`)) && !bytes.Contains(raw, []byte(`\u`)) {
			t.Errorf("%q", got)
		}
	})
}
