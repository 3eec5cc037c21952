package signals

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) *Pipe {
	t.Helper()
	p, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// wait returns the next n signals.
func wait(t *testing.T, p *Pipe, n int) (got []syscall.Signal) {
	t.Helper()
	for len(got) < n {
		fds := []unix.PollFd{{Fd: int32(p.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 10000); err == unix.EINTR {
			continue
		}
		s, ok := p.Next()
		if !ok {
			t.Fatalf("of %d signals came %v", n, got)
		}
		got = append(got, s)
	}
	return got
}

func TestTake(t *testing.T) {
	p := pipe(t)
	if again := pipe(t); again != p {
		t.Error("there are two pipes")
	}
	if s, ok := p.Next(); ok {
		t.Errorf("%v came from nowhere", s)
	}
	p.Take(unix.SIGUSR1, unix.SIGTERM, 64)
	for _, s := range []syscall.Signal{unix.SIGUSR1, unix.SIGTERM, 64} {
		unix.Kill(os.Getpid(), s)
		if got := wait(t, p, 1); got[0] != s {
			t.Errorf("got %v, want %v", got, s)
		}
	}
}

// TestWhileBusy: signals come to whatever thread there is, while goroutines are moved between
// them, preempted, collect garbage, wait in system calls and fork. Nothing of it minds.
func TestWhileBusy(t *testing.T) {
	p := pipe(t)
	p.Take(unix.SIGUSR2)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	busy := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	busy(func() {
		b := make([][]byte, 100)
		for i := range b {
			b[i] = bytes.Repeat([]byte{byte(i)}, 1000)
		}
		for i := range b {
			if b[i][999] != byte(i) {
				t.Error("memory is not what was written")
			}
		}
	})
	busy(func() {
		var f float64 = 1
		for i := range 100000 {
			f += 1 / float64(i+1)
		}
		if f < 12 || f > 14 {
			t.Errorf("the sum is %v", f)
		}
	})
	busy(func() {
		if out, err := exec.Command("/bin/echo", "hello").Output(); err != nil || string(out) != "hello\n" {
			t.Errorf("echo: %q, %v", out, err)
		}
	})
	busy(func() { unix.Nanosleep(&unix.Timespec{Nsec: 100000}, nil) })
	const n = 3000
	for range n {
		unix.Kill(os.Getpid(), unix.SIGUSR2)
		wait(t, p, 1)
	}
	close(stop)
	wg.Wait()
}

func TestContext(t *testing.T) {
	p := pipe(t)
	p.Take(unix.SIGUSR1)
	ctx, stop := p.Context(context.Background())
	unix.Kill(os.Getpid(), unix.SIGUSR1)
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the signal does not end the context")
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "SIGUSR1") {
		t.Errorf("it ended because of %v", err)
	}
	stop()
	stop()
	// What comes after it is not lost.
	ctx, stop = p.Context(context.Background())
	stop()
	unix.Kill(os.Getpid(), unix.SIGUSR1)
	if got := wait(t, p, 1); got[0] != unix.SIGUSR1 || ctx.Err() != nil {
		t.Errorf("got %v, the context says %v", got, ctx.Err())
	}
}

// TestIgnored: what was ignored when the process began stays so.
func TestIgnored(t *testing.T) {
	if os.Getenv("SIGNALS_TEST_CHILD") != "" {
		p := pipe(t)
		p.Take(unix.SIGHUP, unix.SIGUSR1)
		unix.Kill(os.Getpid(), unix.SIGHUP)
		unix.Kill(os.Getpid(), unix.SIGUSR1)
		if got := wait(t, p, 1); got[0] != unix.SIGUSR1 {
			t.Errorf("got %v", got)
		}
		return
	}
	cmd := exec.Command("/bin/sh", "-c", `trap "" HUP; exec "$0" -test.run '^TestIgnored$'`, "/proc/self/exe")
	cmd.Args[3], _ = os.Executable()
	cmd.Env = append(os.Environ(), "SIGNALS_TEST_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
