package cri

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

const (
	// offerTime is how long the address of a session is good for, and a bit: the library
	// forgets it after a minute.
	offerTime = 70 * time.Second
	// streamsTime is how long a client may take to ask for the streams that it announced.
	streamsTime = 10 * time.Second
	// lingerTime is how long a connection may go on after its session has ended. The library
	// closes it, unless its client has never asked for the streams that it announced.
	lingerTime = 10 * time.Second
)

func (s *Server) serveStreaming() error {
	h := &http.Server{
		Handler: http.HandlerFunc(s.serveSession), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			ctx, cancel := context.WithCancel(ctx)
			conn := below(c)
			conn.gone.Store(&cancel)
			return context.WithValue(ctx, connectionKey{}, conn)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateHijacked {
				below(c).taken.Store(true)
			}
		},
	}
	err := h.Serve(s.listener)
	h.Close()
	if errors.Is(err, http.ErrServerClosed) {
		return net.ErrClosed
	}
	return err
}

// connection is a client's connection. Once it can be read no more the client has gone, and
// the contexts of its requests end. The library knows a session's streams, and would wait
// for as long as nothing is written to them.
type connection struct {
	net.Conn
	gone  atomic.Pointer[context.CancelFunc]
	taken atomic.Bool // by a session: net/http closes it no more
}

type connectionKey struct{}

func (c *connection) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
		if c.taken.Load() {
			c.Conn.Close()
		}
	}
	return n, err
}

// Close ends the connection, and what was begun for it.
func (c *connection) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *connection) end() {
	if gone := c.gone.Load(); gone != nil {
		(*gone)()
	}
}

// below is the connection that is below TLS, where there is any.
func below(c net.Conn) *connection {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*connection)
}

type connections struct{ net.Listener }

func (l connections) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &connection{Conn: c}, nil
}

// serveSession serves one session, if there are not too many: each takes two thirds of a
// megabyte, most of which is the compression of the protocol's headers.
func (s *Server) serveSession(w http.ResponseWriter, r *http.Request) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		http.Error(w, fmt.Sprintf("%d sessions of exec, attach and port-forward are open, and cri.maxSessions allows no more", cap(s.slots)), http.StatusServiceUnavailable)
		return
	}
	if dir, token := path.Split(r.URL.Path); dir == "/portforward/" {
		if name, ok := s.offers.LoadAndDelete(token); ok {
			s.forwards.Store(name, r.Context())
			defer s.forwards.Delete(name)
		}
	}
	s.streaming.ServeHTTP(w, r)
	if c := r.Context().Value(connectionKey{}).(*connection); c.taken.Load() {
		time.AfterFunc(lingerTime, func() { c.Close() })
	}
}

// The library gives a port-forward neither the request nor its context. So each is known to
// it by a name of its own, by which the context is found.

// offerForward offers a port-forward.
func (s *Server) offerForward(r *v1.PortForwardRequest) (*v1.PortForwardResponse, error) {
	name := r.PodSandboxId + "/" + rand.Text()
	answer, err := s.streaming.GetPortForward(&v1.PortForwardRequest{PodSandboxId: name, Port: r.Port})
	if err != nil {
		return nil, err
	}
	token := path.Base(answer.Url)
	s.offers.Store(token, name)
	time.AfterFunc(offerTime, func() { s.offers.Delete(token) })
	return answer, nil
}

// forward is the pod of a port-forward, and a context that ends with its connection.
func (s *Server) forward(name string) (pod.ID, context.Context, error) {
	ctx, ok := s.forwards.Load(name)
	if !ok {
		return "", nil, errs.New(errs.Canceled, "the client of the port-forward has gone")
	}
	id, _, _ := strings.Cut(name, "/")
	return pod.ID(id), ctx.(context.Context), nil
}

// forwarding are port-forwards: those that are offered, by the tokens of their addresses,
// and those that are served, by their names.
type forwarding struct {
	offers   sync.Map // of string by string
	forwards sync.Map // of context.Context by string
}
