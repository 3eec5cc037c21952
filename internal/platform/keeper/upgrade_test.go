package keeper_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func TestUpgrade(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; read x; exit 9")
	s.Stdin = true
	st := r.run(s)
	s = r.sh("tty", "read x; echo got $x; exit 8")
	s.OCI.Process.Terminal = true
	r.run(s)
	pid := r.c.PID()
	if err := r.c.Upgrade(r.ctx, "/no/such/binary"); !errors.Is(err, errs.Invalid) {
		t.Errorf("upgrade to nothing: %v", err)
	}
	if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
		t.Fatal(err)
	}
	<-r.c.Done()
	r.spawn()
	if r.c.PID() != pid {
		t.Errorf("another process: %d was %d", r.c.PID(), pid)
	}
	if now, err := r.c.Status(r.ctx, "a"); err != nil || now.State != keeper.Running || now.PID != st.PID {
		t.Errorf("after the upgrade: %+v, %v", now, err)
	}
	for id, code := range map[string]int{"a": 9, "tty": 8} {
		w, err := r.c.StdinWriter(r.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w, "go")
		w.Close()
		if x := r.wait(id); x.Code != code || !x.Known {
			t.Errorf("%s: exit %+v\n%s", id, x, r.keeperLog())
		}
	}
	if n := len(r.log("a")); n != 500 {
		t.Errorf("%d lines", n)
	}
}

// Upgraded again and again under writers, with clients that come and go: no line is
// lost or doubled, no connection is refused, children stay children.
func TestUpgradeUnderLoad(t *testing.T) {
	r := newRig(t)
	const n = 20000
	s := r.sh("a", fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; read x; exit 3", n))
	s.Stdin = true
	s.Log.MaxBytes, s.Log.MaxFiles = 400_000, 9
	r.run(s)
	s = r.sh("tty", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; read x; exit 4")
	s.OCI.Process.Terminal = true
	r.run(s)
	pid := r.c.PID()
	stop, dialed := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				dialed <- n
				return
			default:
			}
			nc, err := net.Dial("unix", keeper.Socket(r.dir))
			if errors.Is(err, unix.EAGAIN) { // more wait to be accepted than the system allows
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				t.Errorf("a connection was refused: %v", err)
				dialed <- n
				return
			}
			nc.Close()
			time.Sleep(100 * time.Microsecond)
		}
	}()
	r.c.Close() // nobody holds anything: the keeper keeps it all itself
	r.held.Close()
	for range 25 {
		r.dial()
		if r.c.PID() != pid {
			t.Fatalf("another process: %d, was %d", r.c.PID(), pid)
		}
		if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
			t.Fatalf("%v\n%s", err, r.keeperLog())
		}
		<-r.c.Done()
	}
	r.dial()
	close(stop)
	t.Logf("%d connections were made meanwhile", <-dialed)
	for id, code := range map[string]int{"a": 3, "tty": 4} {
		w, err := r.c.StdinWriter(r.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w)
		w.Close()
		if x := r.wait(id); x.Code != code || !x.Known {
			t.Errorf("%s: exit %+v", id, x)
		}
	}
	numbered(t, r.log("a"), "stdout", "line", n)
	numbered(t, r.log("a"), "stderr", "err", n)
	lines := r.log("tty")
	numbered(t, lines[:len(lines)-1], "stdout", "line", 2000)
}
