package executor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// shell is a hook that runs a script.
func shell(script string, env ...string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: append([]string{"PATH=/bin:/usr/bin"}, env...)}
}

// TestHooks: each hook runs when and where it is to, and is told the container's state.
func TestHooks(t *testing.T) {
	for _, own := range []bool{true, false} { // a PID namespace
		for _, fifoGate := range []bool{false, true} {
			t.Run(fmt.Sprint("pid namespace ", own, ", gate ", fifoGate), func(t *testing.T) { hooks(t, own, fifoGate) })
		}
	}
}

func hooks(t *testing.T, own, fifoGate bool) {
	dir := t.TempDir()
	unix.Chmod(dir, 0o777) // the container's user writes there
	os.WriteFile(dir+"/order", nil, 0o666)
	unix.Chmod(dir+"/order", 0o666)
	rootfs := image(t)
	s := spec("sh", "-c", "echo program >>/log/order")
	s.Annotations = map[string]string{"a": "b", "large": strings.Repeat("x", 300<<10)} // more than a pipe holds
	s.Process.User.UID = 1000
	s.Mounts = append(s.Mounts, specs.Mount{Source: dir, Destination: "/log", Type: "bind", Options: []string{"rbind"}})
	if !own {
		s.Linux.Namespaces = append(s.Linux.Namespaces[:1], s.Linux.Namespaces[2:]...)
	}
	record := func(name, log, more string) specs.Hook {
		return shell(fmt.Sprintf("cat >%s/%s.json; (readlink /proc/self/ns/mnt; readlink /proc/self/ns/net) >%s/%s.ns; echo %s >>%s/order; %s", log, name, log, name, name, log, more))
	}
	s.Hooks = &specs.Hooks{
		//lint:ignore SA1019 engines still use it
		Prestart:      []specs.Hook{record("prestart", dir, "nsenter -t $(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/' "+dir+"/prestart.json) -m test -e "+rootfs+"/dev/pts/ptmx -a -e "+rootfs+"/log/order || exit 1"), shell("exit 0 # and reads nothing")},
		CreateRuntime: []specs.Hook{record("createRuntime", dir, "true")},
		CreateContainer: []specs.Hook{record("createContainer", dir, "test $PWD = "+rootfs+" -a -e "+rootfs+"/proc/self -a -e /etc/debian_version -a $(id -u) = 0; "+
			"test $(ls /proc/self/fd | wc -l) -le 4 && mkdir "+rootfs+"/dev/by-hook"), shell("exit 0")},
		StartContainer: []specs.Hook{record("startContainer", "/log", "test -e /dev/by-hook -a $(id -u) = 1000 -a ! -e /proc/self/fd/10 || exit 1; test $(ls /proc/self/fd | wc -l) -le 4")},
	}
	c := Config{ID: "hooked", Spec: s, Rootfs: Rootfs{Dir: rootfs}, Bundle: "/some/bundle"}
	var path string
	if fifoGate {
		path, c.Gate = fifo(t)
		c.ExtraFiles = []*os.File{os.Stdin, os.Stdin, os.Stdin}
	}
	p, err := shared.Create(contextT(t), c)
	if err != nil {
		t.Fatal(err)
	}
	order, _ := os.ReadFile(dir + "/order")
	if string(order) != "prestart\ncreateRuntime\ncreateContainer\n" {
		t.Errorf("before the start there ran %q", order)
	}
	ns := func(pid any) string {
		mnt, _ := os.Readlink(fmt.Sprintf("/proc/%v/ns/mnt", pid))
		net, _ := os.Readlink(fmt.Sprintf("/proc/%v/ns/net", pid))
		return mnt + "\n" + net + "\n"
	}
	host, inside := ns("self"), ns(p.PID())
	if fifoGate {
		err = OpenGate(contextT(t), path)
	} else {
		err = p.Start(contextT(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	pid := p.PID()
	if code, _ := wait(t, p); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	state := &specs.State{Version: specs.Version, ID: "hooked", Status: specs.StateStopped, Bundle: "/some/bundle", Annotations: s.Annotations}
	if err := RunHooks(contextT(t), []specs.Hook{record("poststop", dir, "true")}, state); err != nil {
		t.Error(err)
	}
	order, _ = os.ReadFile(dir + "/order")
	if string(order) != "prestart\ncreateRuntime\ncreateContainer\nstartContainer\nprogram\npoststop\n" {
		t.Errorf("there ran %q", order)
	}
	in := 1
	if !own {
		in = pid
	}
	for _, tt := range []struct {
		name   string
		pid    int
		status specs.ContainerState
		ns     string
	}{
		{"prestart", pid, specs.StateCreating, host}, {"createRuntime", pid, specs.StateCreating, host},
		{"createContainer", in, specs.StateCreating, inside}, {"startContainer", in, specs.StateCreated, inside}, {"poststop", 0, specs.StateStopped, host},
	} {
		data, err := os.ReadFile(filepath.Join(dir, tt.name+".json"))
		if err != nil {
			t.Error(err)
			continue
		}
		var got specs.State
		if err := json.Unmarshal(data, &got); err != nil {
			t.Errorf("%s was told %.200q: %v", tt.name, data, err)
		}
		if got.Pid != tt.pid || got.Status != tt.status || got.ID != "hooked" || got.Bundle != "/some/bundle" || got.Version != specs.Version || got.Annotations["a"] != "b" {
			t.Errorf("%s was told %.200s", tt.name, data)
		}
		if where, _ := os.ReadFile(filepath.Join(dir, tt.name+".ns")); string(where) != tt.ns {
			t.Errorf("%s ran in %q, want %q", tt.name, where, tt.ns)
		}
	}
}

// points are where a hook can be, and how it gets there.
var points = map[string]func(h *specs.Hooks, list ...specs.Hook){
	//lint:ignore SA1019 engines still use it
	"prestart":        func(h *specs.Hooks, list ...specs.Hook) { h.Prestart = list },
	"createRuntime":   func(h *specs.Hooks, list ...specs.Hook) { h.CreateRuntime = list },
	"createContainer": func(h *specs.Hooks, list ...specs.Hook) { h.CreateContainer = list },
	"startContainer":  func(h *specs.Hooks, list ...specs.Hook) { h.StartContainer = list },
	"poststop":        nil, // through RunHooks
}

// hooked is the error of a start with hooks at a point.
func hooked(t *testing.T, point string, list ...specs.Hook) error {
	t.Helper()
	before := leftovers()
	defer func() {
		if after := leftovers(); after != before {
			t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
		}
	}()
	if points[point] == nil {
		return RunHooks(contextT(t), list, &specs.State{})
	}
	s := spec("true")
	s.Hooks = &specs.Hooks{}
	points[point](s.Hooks, list...)
	p, err := shared.Create(contextT(t), Config{ID: "hooked", Spec: s, Rootfs: layers(t, image(t))})
	if point != "startContainer" || err != nil {
		if err == nil {
			p.Start(contextT(t))
			wait(t, p)
		}
		return err
	}
	if err := p.Start(contextT(t)); err != nil {
		p.Close()
		return err
	}
	if code, _ := wait(t, p); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	return nil
}

func TestHookFailures(t *testing.T) {
	second := 1
	for point := range points {
		t.Run(point, func(t *testing.T) {
			marker := filepath.Join(t.TempDir(), "ran")
			for name, tt := range map[string]struct {
				hook specs.Hook
				kind *errs.Kind
				text []string
			}{
				"status":        {shell("echo what it says; echo and its error >&2; exit 3"), errs.FailedPrecondition, []string{"/bin/sh", "ended with status 3", "what it says\nand its error"}},
				"long output":   {shell("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 1"), errs.FailedPrecondition, []string{"line 2999"}},
				"killed":        {shell("kill -9 $$"), errs.FailedPrecondition, []string{"killed by"}},
				"timeout":       {specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo slow; sleep 1000"}, Env: []string{"PATH=/bin"}, Timeout: &second}, errs.Timeout, []string{"timeout of 1 s", "slow"}},
				"missing":       {specs.Hook{Path: "/bin/not-there"}, errs.NotFound, []string{"/bin/not-there"}},
				"not a program": {specs.Hook{Path: "/proc/version"}, errs.PermissionDenied, []string{"/proc/version"}},
				"relative":      {specs.Hook{Path: "sh"}, errs.Invalid, []string{"path", "not an absolute path"}},
				"bad timeout":   {specs.Hook{Path: "/bin/sh", Timeout: new(int)}, errs.Invalid, []string{"timeout", "greater than zero"}},
				"null byte":     {specs.Hook{Path: "/bin/sh", Args: []string{"a\x00b"}}, errs.Invalid, []string{"args", "null byte"}},
			} {
				t.Run(name, func(t *testing.T) {
					err := hooked(t, point, shell("exit 0"), tt.hook, shell("echo >"+marker))
					if !errors.Is(err, tt.kind) {
						t.Errorf("got %v (kind %v), want kind %v", err, errs.KindOf(err), tt.kind)
						return
					}
					for _, want := range tt.text {
						if !strings.Contains(err.Error(), want) {
							t.Errorf("%q is not in %v", want, err)
						}
					}
					if len(err.Error()) > 2000 {
						t.Errorf("the error has %d bytes", len(err.Error()))
					}
					if _, err := os.Stat(marker); err == nil {
						t.Error("the next hook ran")
					}
				})
			}
		})
	}
}

// TestHookArguments: arguments and environment are what is given, duplicates, entries
// without = and all; without arguments there is the path.
func TestHookArguments(t *testing.T) {
	for point := range points {
		if point == "startContainer" {
			continue // its file would be in the container; it shares createContainer's code
		}
		t.Run(point, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			env := []string{"B=1", "A=first", "A=second", "alone", "OUT=" + out}
			h := specs.Hook{Path: "/bin/sh", Args: []string{"name", "-c", "tr '\\0' '\\n' </proc/self/environ >$OUT; tr '\\0' '|' </proc/self/cmdline >>$OUT", "x", "y z"}, Env: env}
			if err := hooked(t, point, h); err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(out)
			if want := strings.Join(env, "\n") + "\nname|-c|"; !strings.HasPrefix(string(got), want) || !strings.HasSuffix(string(got), "|x|y z|") {
				t.Errorf("got %q", got)
			}
		})
	}
	if err := hooked(t, "createContainer", specs.Hook{Path: "/bin/true"}); err != nil {
		t.Error(err)
	}
}

// TestHookLeavesSomething: what a hook leaves running, with its output in its hands, holds
// up nothing.
func TestHookLeavesSomething(t *testing.T) {
	for point := range points {
		if point == "startContainer" {
			continue // it would end with the container's PID namespace
		}
		t.Run(point, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pid")
			begin := time.Now()
			if err := hooked(t, point, shell("setsid sleep 1000 & echo $! >"+file)); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			if point == "createContainer" {
				return // it has ended with the container
			}
			data, _ := os.ReadFile(file)
			pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Errorf("what it left is gone: %v", err)
			}
		})
	}
}

// TestKilledInHook: a container that is killed while a hook of its start runs has not been
// started.
func TestKilledInHook(t *testing.T) {
	for _, fifoGate := range []bool{false, true} {
		dir := t.TempDir()
		s := spec("true")
		s.Mounts = append(s.Mounts, specs.Mount{Source: dir, Destination: "/log", Type: "bind", Options: []string{"rbind"}})
		if err := unix.Mkfifo(dir+"/ready", 0o600); err != nil {
			t.Fatal(err)
		}
		s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{shell("echo >/log/ready; sleep 1000")}}
		c := Config{ID: "killed", Spec: s, Rootfs: layers(t, image(t))}
		path := ""
		if fifoGate {
			path, c.Gate = fifo(t)
		}
		p, err := shared.Create(contextT(t), c)
		if err != nil {
			t.Fatal(err)
		}
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			if f, err := os.OpenFile(dir+"/ready", os.O_RDWR, 0); err == nil {
				f.SetReadDeadline(time.Now().Add(20 * time.Second))
				f.Read(make([]byte, 1))
				f.Close()
			}
			unix.PidfdSendSignal(int(p.PIDFD().Fd()), unix.SIGKILL, nil, 0)
		}()
		if fifoGate {
			err = OpenGate(contextT(t), path)
		} else {
			err = p.Start(contextT(t))
		}
		<-killed
		if !errors.Is(err, errs.FailedPrecondition) || !strings.Contains(err.Error(), "startContainer") {
			t.Errorf("got %v", err)
		}
		if fifoGate {
			wait(t, p)
		} else {
			p.Close()
		}
	}
}

// TestHooksGivenUp: whoever gives up while hooks run ends them.
func TestHooksGivenUp(t *testing.T) {
	for point := range points {
		t.Run(point, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(contextT(t), 300*time.Millisecond)
			defer cancel()
			before := leftovers()
			s := spec("true")
			s.Hooks = &specs.Hooks{}
			list := []specs.Hook{shell("sleep 1000")}
			var err error
			if points[point] == nil {
				err = RunHooks(ctx, list, &specs.State{})
			} else {
				points[point](s.Hooks, list...)
				var p *Process
				if p, err = shared.Create(ctx, Config{ID: "given up", Spec: s, Rootfs: layers(t, image(t))}); err == nil {
					err = p.Start(ctx)
					p.Close()
				}
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}
