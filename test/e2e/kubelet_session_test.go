package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"net/url"
	"testing"
	"time"
)

// session is a connection through kubelet's API, as kubectl makes it.
func (k *kubeletNode) session(t *testing.T, protocol, path string, query url.Values) *session {
	t.Helper()
	u, err := url.Parse(kubeletAPI + path + "?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSession(t, k.netns, protocol, u, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", path, err, k.kubeletLog(), k.tail())
	}
	return s
}

func (k *kubeletNode) exec(t *testing.T, pod, container string, tty bool, command ...string) *session {
	t.Helper()
	q := url.Values{"command": command, "input": {"1"}, "output": {"1"}}
	if tty {
		q.Set("tty", "1")
	} else {
		q.Set("error", "1")
	}
	return k.session(t, "v5.channel.k8s.io", "/exec/default/"+pod+"-node/"+container, q)
}

func testKubeletSessions(t *testing.T, k *kubeletNode) {
	k.is(40*time.Second, "session", "main", ready)
	t.Run("streams", func(t *testing.T) {
		s := k.exec(t, "session", "main", false, "/bin/tool", "cat")
		s.send(t, channelStdin, "there and back\n")
		s.until(t, channelStdout, "there and back\n")
		s.send(t, channelClose, string([]byte{channelStdin}))
		if got := s.end(t); got != "" {
			t.Errorf("cat ended with %s", got)
		}
	})
	t.Run("status", func(t *testing.T) {
		s := k.exec(t, "session", "main", false, "/bin/tool", "exit", "7")
		if got := s.end(t); got != "7" || s.got[channelStdout].String() != "to stdout\n" || s.got[channelStderr].String() != "to stderr\n" {
			t.Errorf("ended with %s, wrote %q and %q", got, s.got[channelStdout].String(), s.got[channelStderr].String())
		}
	})
	t.Run("terminal", func(t *testing.T) {
		s := k.exec(t, "session", "main", true, "/bin/tool", "terminal")
		s.until(t, channelStdout, "ready")
		s.send(t, channelResize, `{"Width":111,"Height":33}`)
		s.until(t, channelStdout, "now 111 columns 33 rows")
		s.send(t, channelStdin, "hello\n")
		s.until(t, channelStdout, "typed hello")
		s.send(t, channelStdin, "exit 5\n")
		if got := s.end(t); got != "5" {
			t.Errorf("ended with %s", got)
		}
	})
	t.Run("port", func(t *testing.T) {
		s := k.session(t, "v4.channel.k8s.io", "/portForward/default/session-node", url.Values{"port": {"7000"}})
		// Each channel begins with the port.
		s.until(t, 0, string(binary.LittleEndian.AppendUint16(nil, 7000)))
		s.send(t, 0, "hello\n")
		s.until(t, 0, "echo hello\n")
	})
}
