package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
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

// session is a WebSocket connection to a process in a container, or to a port of a pod.
type session struct {
	ws  *websocket.Conn
	got [4]bytes.Buffer
}

// openSession connects to the URL from within a network namespace; conf is for https.
func openSession(t *testing.T, netns, protocol string, u *url.URL, conf *tls.Config) (*session, error) {
	t.Helper()
	c, err := websocket.NewConfig(strings.Replace(u.String(), "http", "ws", 1), u.Scheme+"://"+u.Host)
	if err != nil {
		return nil, err
	}
	c.Protocol = []string{protocol}
	raw, err := dialIn(netns)(context.Background(), "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	if u.Scheme == "https" {
		raw = tls.Client(raw, conf)
	}
	ws, err := websocket.NewClient(c, raw)
	return &session{ws: ws}, err
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
