// Package client is a client of the control API.
package client

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/server/control/wire"
)

// DefaultSocket is where the daemon listens unless it is configured otherwise.
const DefaultSocket = "/run/orlop/orlop.sock"

// Client talks to one daemon. It is safe for concurrent use, and connects when it is
// first used. Its errors carry kinds (package errs) and read as the daemon wrote them.
type Client struct {
	Manifests orlopv1connect.ManifestsClient
	Pods      orlopv1connect.PodsClient
	Images    orlopv1connect.ImagesClient
	Volumes   orlopv1connect.VolumesClient
	Configs   orlopv1connect.ConfigsClient
	System    orlopv1connect.SystemClient

	transport *http.Transport
}

// New returns a client of the daemon behind the socket.
func New(socket string) *Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	t := &http.Transport{
		Protocols: p,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := net.Dialer{Timeout: 10 * time.Second}
			conn, err := d.DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, explain(socket, err)
			}
			return conn, nil
		},
		DisableCompression: true,
	}
	h := &http.Client{Transport: t}
	const base = "http://orlop"
	o := connect.WithInterceptors(interceptor{})
	return &Client{
		Manifests: orlopv1connect.NewManifestsClient(h, base, o),
		Pods:      orlopv1connect.NewPodsClient(h, base, o),
		Images:    orlopv1connect.NewImagesClient(h, base, o),
		Volumes:   orlopv1connect.NewVolumesClient(h, base, o),
		Configs:   orlopv1connect.NewConfigsClient(h, base, o),
		System:    orlopv1connect.NewSystemClient(h, base, o),
		transport: t,
	}
}

// Close lets go of the connection.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// dialError is why the daemon could not be reached, with what to do about it.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

func explain(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return dialError{errs.New(errs.PermissionDenied, "cannot reach the daemon at %s: only root may; try sudo, or let a group in with control.group in the daemon's configuration", socket)}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return dialError{errs.New(errs.Unavailable, "cannot reach the daemon: nothing listens at %s\nstart it with: systemctl start orlop (or: make up, or as root: orlop daemon); if its socket is elsewhere, give --socket or ORLOP_SOCKET", socket)}
	}
	return dialError{errs.New(errs.Unavailable, "cannot reach the daemon at %s: %w", socket, err)}
}

// decode gives errors their kinds back.
func decode(err error) error {
	if d := (dialError{}); errors.As(err, &d) {
		return d.error
	}
	return wire.Decode(err)
}

type interceptor struct{}

// WrapUnary implements connect.Interceptor.
func (interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		if err != nil {
			return nil, Error(err)
		}
		return resp, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// Error gives the error of a stream its kind and text back. Those of unary calls have
// them already.
func Error(err error) error {
	if err == nil {
		return nil
	}
	return decode(err)
}
