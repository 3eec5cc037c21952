package main

import (
	"context"
	"fmt"
	"net"
	"net/http"

	"connectrpc.com/connect"
	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
)

// client is the control API of a daemon.
type client struct {
	manifests orlopv1connect.ManifestsClient
	pods      orlopv1connect.PodsClient
	images    orlopv1connect.ImagesClient
	volumes   orlopv1connect.VolumesClient
	configs   orlopv1connect.ConfigsClient
	system    orlopv1connect.SystemClient
}

// dialError says that the socket cannot be connected to, whatever wraps it.
type dialError struct {
	socket string
	err    error
}

func (e *dialError) Error() string { return fmt.Sprintf("connect to %s: %v", e.socket, e.err) }
func (e *dialError) Unwrap() error { return e.err }

// client returns the client of the daemon at a.socket. Nothing is dialled before
// the first call.
func (a *app) client() *client {
	if a.made == nil {
		a.made = newClient(a.socket)
	}
	return a.made
}

func newClient(socket string) *client {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true) // by prior knowledge: streams go in both directions
	h := &http.Client{Transport: cancelling{&http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				err = &dialError{socket, err}
			}
			return conn, err
		},
	}}}
	const url = "http://orlop"
	grpc := connect.WithGRPC()
	return &client{
		manifests: orlopv1connect.NewManifestsClient(h, url, grpc),
		pods:      orlopv1connect.NewPodsClient(h, url, grpc),
		images:    orlopv1connect.NewImagesClient(h, url, grpc),
		volumes:   orlopv1connect.NewVolumesClient(h, url, grpc),
		configs:   orlopv1connect.NewConfigsClient(h, url, grpc),
		system:    orlopv1connect.NewSystemClient(h, url, grpc),
	}
}

// cancelling ends a stream of requests with its context. The transport alone does
// not notice before the next message is sent, and the answers hang until then.
type cancelling struct{ http.RoundTripper }

func (c cancelling) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ContentLength < 0 {
		context.AfterFunc(r.Context(), func() { r.Body.Close() })
	}
	return c.RoundTripper.RoundTrip(r)
}

// call makes a unary call.
func call[Req, Res any](ctx context.Context, method func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	res, err := method(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}
