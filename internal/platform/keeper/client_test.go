package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

// greeted is a raw connection that has said hello.
func (r *rig) greeted() *wire.Conn {
	r.t.Helper()
	nc, err := net.Dial("unix", keeper.Socket(r.dir))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	c := wire.NewConn(nc.(*net.UnixConn))
	f := &wire.Frame{ID: 1, Op: "hello"}
	f.Encode(keeper.Hello{Version: wire.Version})
	if err := c.Send(f); err != nil {
		r.t.Fatal(err)
	}
	if a, err := c.Receive(); err != nil || a.Failure() != nil {
		r.t.Fatal(err, a)
	}
	return c
}

// A client that asks for everything and reads nothing holds up nobody.
func TestHungClient(t *testing.T) {
	t.Parallel() // it waits more than it works, and names no fault point to the keepers of others
	r := newRig(t)
	hung := r.greeted()
	for i, op := range []string{"events", "hold"} {
		if err := hung.Send(&wire.Frame{ID: uint64(i) + 2, Op: op}); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	for i := range 40 {
		id := fmt.Sprintf("c%d", i)
		r.run(r.sh(id, "echo x"))
		r.wait(id)
		if err := r.c.Delete(r.ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	// More answers than fit into its socket.
	for i := range 3000 {
		if hung.Send(&wire.Frame{ID: uint64(i) + 10, Op: "no-such-request-" + strings.Repeat("x", 500)}) != nil {
			break
		}
		if i%100 == 0 && time.Since(start) > 20*time.Second {
			break
		}
	}
	r.run(r.sh("last", "echo x"))
	r.wait("last")
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("it took %v", d)
	}
}

// A file that is of no use fails its request and no other; to close what is lost is no error.
func TestClientErrors(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "sleep 1000"))
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	waits := make(chan error, 1)
	go func() { _, err := r.c.Wait(r.ctx, "a"); waits <- err }()
	if _, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/true"}}, Stdin: f}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a closed file: %v", err)
	}
	if _, err := r.c.Status(r.ctx, "a"); err != nil {
		t.Errorf("after it: %v", err)
	}
	r.kill()
	if err := <-waits; !errors.Is(err, errs.Unavailable) {
		t.Errorf("a wait of a lost keeper: %v", err)
	}
	if err := r.c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// What does not follow the protocol gets a clear error, or its connection ended; the keeper goes on,
// and keeps no descriptor of it.
func TestHostileClient(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "sleep 1000"))
	if err := r.c.ReopenLog(r.ctx, "a"); err != nil { // it is opened after the answer
		t.Fatal(err)
	}
	fds := r.fds()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	files := func(n int) []*os.File {
		l := make([]*os.File, n)
		for i := range l {
			l[i] = null
		}
		return l
	}
	c := r.greeted()
	for i, q := range []struct {
		op, body string
		files    int
		kind     error
	}{
		{"no-such", `{}`, 0, errs.Unsupported},
		{"no-such", `{}`, 200, errs.Unsupported},
		{"run", `{`, 0, errs.Invalid},
		{"run", `{"ID":"x"}`, 0, errs.Invalid},
		{"run", `{"ID":"x","OCI":{}}`, 0, errs.Invalid},
		{"run", `{"ID":"../../x","OCI":{},"Cgroup":"/x"}`, 0, errs.Invalid},
		{"run", `{"ID":"x/y","OCI":{},"Cgroup":"/x"}`, 0, errs.Invalid},
		{"run", `{"ID":"x\u0000","OCI":{},"Cgroup":"/x"}`, 0, errs.Invalid},
		{"run", `{"ID":"x","OCI":{"process":{"args":["/bin/true"]}},"Cgroup":"../../x"}`, 0, errs.Invalid},
		{"start", `[]`, 0, errs.Invalid},
		{"start", `{"ID":"nobody"}`, 0, errs.NotFound},
		{"wait", `{"ID":"nobody"}`, 0, errs.NotFound},
		{"exec", `{"ID":"a","Process":{"args":["/bin/true"]},"Streams":"io"}`, 1, errs.Invalid},
		{"exec", `{"ID":"a","Process":{"args":["/bin/true"]},"Streams":"ii"}`, 2, errs.Invalid},
		{"exec", `{"ID":"a","Process":{"args":["/bin/true"]},"Streams":"x"}`, 1, errs.Invalid},
		{"exec", `{"ID":"a"}`, 0, errs.Invalid},
		{"exec-wait", `{"Exec":12345}`, 0, errs.NotFound},
		{"attach", `{"ID":"a","Streams":"oeoeoe"}`, 6, errs.Invalid},
		{"attach", `{"ID":"a","Streams":""}`, 100, errs.Invalid},
		{"adopt", `{"ID":"a","What":"zz"}`, 2, errs.Invalid},
		{"adopt", `{"ID":"a","What":"t"}`, 1, errs.Invalid},
		{"adopt", `{"ID":"a","What":"p"}`, 1, nil}, // it needs none
		{"update", `{"ID":"a"}`, 0, errs.Invalid},
		{"upgrade", `{"Binary":"relative"}`, 0, errs.Invalid},
		{"upgrade", `{"Binary":"/bin/true"}`, 0, errs.Invalid},
		{"upgrade", `{"Binary":"/etc/passwd"}`, 0, errs.Invalid},
		{"shutdown", ``, 0, errs.InUse},
		{"list", ``, 100, nil},
	} {
		f := &wire.Frame{ID: uint64(i) + 2, Op: q.op, Body: []byte(q.body), Files: files(q.files)}
		if err := c.Send(f); err != nil {
			t.Fatalf("%s %s: %v", q.op, q.body, err)
		}
		a, err := c.Receive()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", q.op, q.body, err, r.keeperLog())
		}
		if err := a.Failure(); a.ID != f.ID || q.kind == nil && err != nil || q.kind != nil && !errors.Is(err, q.kind) {
			t.Errorf("%s %s: %v", q.op, q.body, err)
		}
		a.CloseFiles()
	}
	c.Close()
	for name, raw := range map[string]string{"huge": "\xff\xff\xff\xff\xff\xff\xff\xff", "http": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "cut": "\x01", "empty": ""} {
		nc, err := net.Dial("unix", keeper.Socket(r.dir))
		if err != nil {
			t.Fatal(err)
		}
		nc.Write([]byte(raw))
		nc.(*net.UnixConn).CloseWrite()
		nc.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := nc.Read(make([]byte, 10)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		nc.Close()
	}
	// The wrong version is told so.
	nc, _ := net.Dial("unix", keeper.Socket(r.dir))
	w := wire.NewConn(nc.(*net.UnixConn))
	f := &wire.Frame{ID: 1, Op: "hello"}
	f.Encode(keeper.Hello{Version: 99})
	w.Send(f)
	if a, err := w.Receive(); err != nil || !errors.Is(a.Failure(), errs.Unsupported) {
		t.Errorf("version 99: %v %v", a, err)
	}
	w.Close()
	for deadline := time.Now().Add(10 * time.Second); r.fds() > fds; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the keeper has %d descriptors, it had %d", r.fds(), fds)
		}
	}
	if err := r.c.Signal(r.ctx, "a", unix.SIGKILL, false); err != nil {
		t.Errorf("the keeper does not go on: %v", err)
	}
}

// fds counts the keeper's descriptors.
func (r *rig) fds() int {
	ents, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.c.PID()))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(ents)
}

// Another user's process gets no word, even where it gets at the socket.
func TestForeignUser(t *testing.T) {
	if socket := os.Getenv("KEEPER_TEST_SOCKET"); socket != "" {
		_, err := keeper.Dial(context.Background(), socket, nil)
		if err == nil || strings.Contains(err.Error(), "permission denied") {
			fmt.Println("dialed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	r := newRig(t)
	os.Chmod(r.dir, 0o755)
	os.Chmod(keeper.Socket(r.dir), 0o666)
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "orlop-keeper-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	os.WriteFile(dir+"/test", raw, 0o755)
	cmd := exec.Command(dir+"/test", "-test.run", "TestForeignUser")
	cmd.Env = append(os.Environ(), "KEEPER_TEST_SOCKET="+keeper.Socket(r.dir))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if !strings.Contains(r.keeperLog(), "uid=65534") {
		t.Errorf("the keeper says %s", r.keeperLog())
	}
}
