package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// streams are those of a client of a session's address that speaks SPDY, as kubelet does for older clients.
type streams struct {
	conn net.Conn
	spdy httpstream.Connection
	by   map[string]httpstream.Stream
}

// open opens the address that the CRI has given with one stream for each name; conf is for https.
func (n *node) open(address, protocol string, conf *tls.Config, headers func(stream string) http.Header, names ...string) (_ *streams, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	conn, err := dialIn(n.netns)(context.Background(), "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if u.Scheme == "https" {
		conn = tls.Client(conn, conf)
	}
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\nContent-Length: 0\r\n\r\n", u.Path, u.Host, protocol)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, text)
	}
	s := &streams{conn: conn, by: make(map[string]httpstream.Stream)}
	if s.spdy, err = spdy.NewClientConnection(buffered{conn, r}); err != nil {
		return nil, err
	}
	for _, name := range names {
		if s.by[name], err = s.spdy.CreateStream(headers(name)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// vanish ends the connection as a client that is killed does.
func (s *streams) vanish() { s.conn.Close() }

func streamType(name string) http.Header { return http.Header{"Streamtype": {name}} }

// execStreams opens a session of exec.
func (c *client) execStreams(id string, tty bool, cmd ...string) (*streams, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.Exec(ctx, &v1.ExecRequest{ContainerId: id, Cmd: cmd, Stdout: true, Stderr: !tty, Tty: tty, Stdin: true})
	if err != nil {
		return nil, err
	}
	names := []string{"error", "stdin", "stdout", "stderr"}
	if tty {
		names = []string{"error", "stdin", "stdout", "resize"}
	}
	return c.n.open(r.Url, "v4.channel.k8s.io", nil, streamType, names...)
}

func (c *client) attachStreams(id string) (*streams, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.Attach(ctx, &v1.AttachRequest{ContainerId: id, Stdout: true, Stderr: true})
	if err != nil {
		return nil, err
	}
	return c.n.open(r.Url, "v4.channel.k8s.io", nil, streamType, "error", "stdout", "stderr")
}

func (c *client) forwardStreams(pod string, port int) (*streams, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := c.PortForward(ctx, &v1.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		return nil, err
	}
	headers := func(name string) http.Header {
		return http.Header{"Streamtype": {name}, "Port": {strconv.Itoa(port)}, "Requestid": {"1"}}
	}
	return c.n.open(r.Url, "portforward.k8s.io", nil, headers, "error", "data")
}
