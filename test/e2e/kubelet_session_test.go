package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Channels of a session's messages, by their first byte.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channelClose = 255
)

// session is a connection through kubelet's API to a process in a container, or to a port
// of a pod, as kubectl makes it.
type session struct {
	ws  *websocket.Conn
	got [4]bytes.Buffer
}

func (k *kubeletNode) session(t *testing.T, protocol, path string, query url.Values) *session {
	t.Helper()
	conf, err := websocket.NewConfig("wss"+kubeletAPI[len("https"):]+path+"?"+query.Encode(), kubeletAPI)
	if err != nil {
		t.Fatal(err)
	}
	conf.Protocol = []string{protocol}
	raw, err := dialIn(k.netns)(context.Background(), "tcp", conf.Location.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	ws, err := websocket.NewClient(conf, tls.Client(raw, &tls.Config{InsecureSkipVerify: true}))
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", path, err, k.kubeletLog(), k.tail())
	}
	return &session{ws: ws}
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

func (s *session) send(t *testing.T, channel byte, data string) {
	t.Helper()
	if err := websocket.Message.Send(s.ws, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

// receive takes one message and tells whether there was one.
func (s *session) receive() error {
	var m []byte
	if err := websocket.Message.Receive(s.ws, &m); err != nil {
		return err
	}
	if len(m) > 0 && int(m[0]) < len(s.got) {
		s.got[m[0]].Write(m[1:])
	}
	return nil
}

// until waits for text on a channel.
func (s *session) until(t *testing.T, channel int, text string) {
	t.Helper()
	for !bytes.Contains(s.got[channel].Bytes(), []byte(text)) {
		if err := s.receive(); err != nil {
			t.Fatalf("%q did not come: %v; what came: %q %q", text, err, s.got[channel].String(), s.got[channelError].String())
		}
	}
}

// end waits for the end of a command and returns how it ended: "" is success.
func (s *session) end(t *testing.T) string {
	t.Helper()
	for s.receive() == nil {
	}
	var st metav1.Status
	if err := json.Unmarshal(s.got[channelError].Bytes(), &st); err != nil {
		t.Fatalf("how the command ended: %v in %q", err, s.got[channelError].String())
	}
	if st.Status == metav1.StatusSuccess {
		return ""
	}
	for _, c := range st.Details.Causes {
		if c.Type == "ExitCode" {
			return c.Message
		}
	}
	return fmt.Sprint(st)
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
