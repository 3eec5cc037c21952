package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// agent is a seccomp listener: it answers every call that it is handed with an error, and
// tells what state came with its descriptor.
type agent struct {
	path   string
	states chan specs.ContainerProcessState
}

func newAgent(t testing.TB, answer unix.Errno) *agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	unix.Chmod(path, 0o600)
	a := &agent{path, make(chan specs.ContainerProcessState, 4)}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for { // one connection after the other, as simple ones do
			conn, err := l.Accept()
			if err != nil {
				return
			}
			a.serve(t, conn.(*net.UnixConn), answer)
		}
	}()
	return a
}

func (a *agent) serve(t testing.TB, conn *net.UnixConn, answer unix.Errno) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	buf, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		t.Error(err)
		return
	}
	var state specs.ContainerProcessState
	if err := json.NewDecoder(io.MultiReader(strings.NewReader(string(buf[:n])), conn)).Decode(&state); err != nil {
		t.Error(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Errorf("with the state came %v, %v", msgs, err)
		return
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Errorf("with the state came %v, %v", fds, err)
		return
	}
	a.states <- state
	go func() {
		defer unix.Close(fds[0])
		for {
			var call [80]byte
			if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&call))); e == unix.EINTR {
				continue
			} else if e != 0 {
				return // the container has ended
			}
			reply := struct {
				id         uint64
				val        int64
				err, flags int32
			}{id: *(*uint64)(unsafe.Pointer(&call)), err: -int32(answer)}
			unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&reply)))
		}
	}()
}

func notifying(path string) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "meta",
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}}}
}

// TestSeccompNotify: the listener gets its descriptor and the state, with each gate, with
// and without no_new_privs, as any user, and its answers reach the program.
func TestSeccompNotify(t *testing.T) {
	const answer = unix.ENOTUNIQ
	a := newAgent(t, answer)
	for _, tt := range []struct {
		fifoGate, nnp bool
		uid           uint32
	}{{false, true, 0}, {true, true, 1000}, {false, false, 1000}, {true, false, 0}} {
		t.Run(fmt.Sprintf("%+v", tt), func(t *testing.T) {
			s := spec("sh", "-c", "mkdir /tmp/x; ls /proc/self/fd | wc -l")
			s.Process.NoNewPrivileges = tt.nnp
			s.Process.User.UID = tt.uid
			s.Annotations = map[string]string{"large": strings.Repeat("x", 600<<10)} // more than a socket holds
			s.Linux.Seccomp = notifying(a.path)
			c := Config{ID: "notified", Spec: s, Rootfs: layers(t, image(t)), Bundle: "/a/bundle"}
			r, w, _ := os.Pipe()
			defer r.Close()
			c.Stdout, c.Stderr = w, w
			var path string
			if tt.fifoGate {
				path, c.Gate = fifo(t)
			}
			p, err := shared.Create(contextT(t), c)
			if err != nil {
				t.Fatal(err)
			}
			if tt.fifoGate {
				err = OpenGate(contextT(t), path)
			} else {
				err = p.Start(contextT(t))
			}
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			out, _ := io.ReadAll(r)
			pid := p.PID()
			wait(t, p)
			if !strings.Contains(string(out), "Name not unique on network") || !strings.HasSuffix(string(out), "\n4\n") {
				t.Errorf("the program says %q", out)
			}
			got := <-a.states
			if got.Pid != pid || got.Metadata != "meta" || len(got.Fds) != 1 || got.Fds[0] != specs.SeccompFdName || got.Version != specs.Version ||
				got.State.ID != "notified" || got.State.Pid != pid || got.State.Bundle != "/a/bundle" || got.State.Status != specs.StateCreated || len(got.State.Annotations["large"]) != 600<<10 {
				got.State.Annotations = nil
				t.Errorf("the state is %+v", got)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
		defer end()
		out := execute(t, ExecConfig{ID: "notified", PID: p.PID(), Seccomp: notifying(a.path), Process: &specs.Process{
			Args: []string{"mkdir", "/tmp/x"}, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true, User: specs.User{UID: 5}}})
		got := <-a.states
		if !strings.Contains(out, "not unique") || got.Pid == p.PID() || got.State.Pid != p.PID() || got.State.ID != "notified" || got.State.Status != specs.StateRunning {
			t.Errorf("the program says %q, the state is %+v", out, got)
		}
	})
}

func TestSeccompNotifyFailures(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, tt := range map[string]struct {
		change func(s *specs.LinuxSeccomp)
		kind   *errs.Kind
		text   string
	}{
		"no path":   {func(s *specs.LinuxSeccomp) { s.ListenerPath = "" }, errs.Invalid, "linux.seccomp.listenerPath"},
		"no socket": {func(s *specs.LinuxSeccomp) { s.ListenerPath = "/nowhere" }, errs.NotFound, "/nowhere"},
		"file":      {func(s *specs.LinuxSeccomp) { s.ListenerPath = "/etc/passwd" }, errs.Invalid, "not a socket"},
		"no notify": {func(s *specs.LinuxSeccomp) { s.Syscalls = nil }, errs.Invalid, "SCMP_ACT_NOTIFY"},
		"metadata":  {func(s *specs.LinuxSeccomp) { s.Syscalls, s.ListenerPath = nil, "" }, errs.Invalid, "listenerMetadata"},
		"dead":      {func(s *specs.LinuxSeccomp) {}, errs.Unavailable, "nobody listens"},
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			s := spec("true")
			s.Linux.Seccomp = notifying(dead)
			tt.change(s.Linux.Seccomp)
			p, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t))})
			if err == nil {
				err = p.Start(contextT(t))
				p.Close()
			}
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (kind %v), want kind %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}
