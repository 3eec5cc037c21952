package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/proc"
	"github.com/orlop-io/orlop/test/programs"
)

// talk is a stream to a command or a port, by either protocol.
type talk struct {
	name  string
	echo  string // what comes back before each line
	write func([]byte) error
	read  func() ([]byte, error)
	close func()
}

// A thousand streams are open at a time, by both protocols, to commands and to ports. All of them send and
// receive at once, nothing is lost or mixed up, the daemon's memory is bounded, and nothing stays.
// ORLOP_TEST_STREAMS says how many.
func TestCRIThousandStreams(t *testing.T) {
	many := number(t, "ORLOP_TEST_STREAMS", 1000)
	n := newNode(t)
	n.allowSessions(many + 50)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	id := c.start(t, pod, criContainer("one", "listen", "7000"))
	open := func(i int) (*talk, error) {
		command, spdy := i%10 == 0, i/10%2 == 0
		switch {
		case command && spdy:
			return spdyTalk(c.execStreams(id, false, "/bin/tool", "cat"))("stdin", "stdout", "")
		case command:
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			r, err := c.Exec(ctx, &v1.ExecRequest{ContainerId: id, Cmd: []string{"/bin/tool", "cat"}, Stdin: true, Stdout: true, Stderr: true})
			if err != nil {
				return nil, err
			}
			return socketTalk(t, n, r.Url, channelStdin, channelStdout, "")
		case spdy:
			return spdyTalk(c.forwardStreams(pod, 7000))("data", "data", "echo ")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		r, err := c.PortForward(ctx, &v1.PortForwardRequest{PodSandboxId: pod, Port: []int32{7000}})
		if err != nil {
			return nil, err
		}
		return socketTalk(t, n, r.Url, 0, 0, "echo ")
	}
	for i := range 20 { // one of each, and more, once the server listens
		n.eventually(10*time.Second, func() error {
			s, err := open(i)
			if err != nil {
				return err
			}
			defer s.close()
			return s.converse(i)
		})
	}
	before := n.count(t)
	top := proc.Peak(n.daemonPID())
	all := make([]*talk, many)
	err := workers(many, 16, func(i int) (err error) {
		all[i], err = open(i)
		return err
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	idle := top()
	top = proc.Peak(n.daemonPID())
	begin := time.Now()
	var group sync.WaitGroup
	for i, s := range all {
		group.Go(func() {
			if err := s.converse(i); err != nil {
				t.Errorf("stream %d, %s: %v", i, s.name, err)
			}
		})
	}
	group.Wait()
	busy := top()
	perIdle, perBusy := float64(idle-before.DaemonKiB)/float64(many), float64(busy-before.DaemonKiB)/float64(many)
	t.Logf("%d streams: the daemon takes %d KiB before, %d with all of them open (%.0f each), %d at most while all of them talk (%.0f each, for %s); %d goroutines",
		many, before.DaemonKiB, idle, perIdle, busy, perBusy, time.Since(begin).Round(time.Millisecond), n.count(t).Goroutines)
	if !programs.Race && perBusy > maxStreamKiB {
		t.Errorf("a stream takes %.0f KiB of the daemon's memory, more than the %d that the documentation says", perBusy, maxStreamKiB)
	}
	for _, s := range all {
		s.close()
	}
	c.sessionsGone(t, pod, id, before)
	c.remove(t, pod)
	c.empty(t)
}

// maxStreamKiB bounds what docs/cli.md says of cri.maxSessions, with what is under way.
const maxStreamKiB = 1000

// converse sends numbered lines and reads what comes back of them.
func (s *talk) converse(i int) error {
	const lines = 500
	var sent, want bytes.Buffer
	for n := range lines {
		line := fmt.Sprintf("stream %d line %d %s\n", i, n, strings.Repeat("x", n%97))
		sent.WriteString(line)
		want.WriteString(s.echo + line)
	}
	failed := make(chan error, 1)
	go func() {
		for b := sent.Bytes(); len(b) > 0; {
			piece := b[:min(len(b), 1000+i)]
			b = b[len(piece):]
			if err := s.write(piece); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	var got bytes.Buffer
	for got.Len() < want.Len() {
		b, err := s.read()
		got.Write(b)
		if err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", got.Len(), want.Len(), err)
		}
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		return fmt.Errorf("what came back is not what was sent: %d and %d bytes", got.Len(), want.Len())
	}
	return <-failed
}

// spdyTalk makes one of streams.
func spdyTalk(s *streams, err error) func(in, out, echo string) (*talk, error) {
	return func(in, out, echo string) (*talk, error) {
		if err != nil {
			return nil, err
		}
		buf := make([]byte, 4096)
		return &talk{
			name: "SPDY " + out, echo: echo, close: s.vanish,
			write: func(b []byte) error { _, err := s.by[in].Write(b); return err },
			read:  func() ([]byte, error) { n, err := s.by[out].Read(buf); return buf[:n], err },
		}, nil
	}
}

// socketTalk opens one by WebSocket.
func socketTalk(t *testing.T, n *node, address string, in, out byte, echo string) (*talk, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	s, err := openSession(t, n.netns, "v4.channel.k8s.io", u, nil)
	if err != nil {
		return nil, err
	}
	s.ws.SetDeadline(time.Now().Add(2 * time.Minute))
	read := func() ([]byte, error) {
		for {
			var m []byte
			if err := websocket.Message.Receive(s.ws, &m); err != nil {
				return nil, err
			}
			if len(m) > 0 && m[0] == out {
				return m[1:], nil
			}
			if len(m) > 1 {
				return nil, fmt.Errorf("on channel %d came %q", m[0], m[1:])
			}
		}
	}
	if in == out { // each of a port's channels begins with its number
		if _, err := read(); err != nil {
			return nil, err
		}
		var m []byte
		if err := websocket.Message.Receive(s.ws, &m); err != nil {
			return nil, err
		}
	}
	return &talk{
		name: "WebSocket", echo: echo, close: func() { s.ws.Close() }, read: read,
		write: func(b []byte) error { return websocket.Message.Send(s.ws, append([]byte{in}, b...)) },
	}, nil
}
