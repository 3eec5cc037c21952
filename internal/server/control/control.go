// Package control serves the control API (api/orlop/v1/control.proto): it translates
// requests to calls on the domains and their answers back. It holds no state.
package control

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"

	"github.com/orlop-io/orlop/api/orlop/v1/orlopv1connect"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

// Options say what stands behind the API.
type Options struct {
	Pods    Pods
	Images  Images
	Volumes Volumes
	Facts   Facts
	// Ready is closed once the daemon has taken stock of what runs. Until then requests
	// wait (those of System do not). nil: ready.
	Ready <-chan struct{}
	// Keeper describes the keeper's process, for `system info`; nil: it is not shown.
	Keeper func(ctx context.Context) (string, error)
	// UpgradeKeeper replaces the keeper's program by the binary at path ("": the
	// configured one) and returns its version; nil: unsupported.
	UpgradeKeeper func(ctx context.Context, path string) (string, error)
	// Fallback serves every other path (metrics, health); nil: not found.
	Fallback http.Handler
	Watch    *rpc.Watcher // nil: requests are neither measured nor traced
	Log      *slog.Logger // nil: none
}

// Facts do not change while the daemon runs.
type Facts struct {
	Version   string
	Instance  string
	Root, Run string
	Cgroup    string   // layout and driver: "hybrid, driver cgroupfs"
	Addresses []string // blocks of pods' addresses
	Warnings  []string // what an operator should know of this host
	StartedAt time.Time
	// Logs and Containers are directories whose sizes `system df` shows.
	Logs, Containers string
}

const (
	// readyTimeout bounds how long a request waits for the daemon to be ready.
	readyTimeout = 30 * time.Second
	// maxMessage bounds one message: files of manifests are the largest.
	maxMessage = 64 << 20
)

// server implements every service.
type server struct {
	o   Options
	log *slog.Logger
}

// New returns the handler. It needs HTTP/2 (h2c on a unix socket) for streams in
// both directions: see NewServer.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Facts.StartedAt.IsZero() {
		o.Facts.StartedAt = time.Now()
	}
	s := &server{o: o, log: o.Log}
	opts := []connect.HandlerOption{
		connect.WithInterceptors(interceptor{s}),
		connect.WithReadMaxBytes(maxMessage),
		connect.WithRecover(func(ctx context.Context, spec connect.Spec, _ http.Header, p any) error {
			s.log.Error("a request failed by a fault of the daemon", "procedure", spec.Procedure, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			return encodeError(errs.New(errs.Internal, "the daemon failed at this request; its log has the details: %v", p))
		}),
	}
	mux := http.NewServeMux()
	mux.Handle(orlopv1connect.NewManifestsHandler(manifests{s}, opts...))
	mux.Handle(orlopv1connect.NewPodsHandler(pods{s}, opts...))
	mux.Handle(orlopv1connect.NewImagesHandler(images{s}, opts...))
	mux.Handle(orlopv1connect.NewVolumesHandler(volumes{s}, opts...))
	mux.Handle(orlopv1connect.NewConfigsHandler(configs{s}, opts...))
	mux.Handle(orlopv1connect.NewSystemHandler(system{s}, opts...))
	if o.Fallback != nil {
		mux.Handle("/", o.Fallback)
	}
	return mux
}

// NewServer returns an HTTP server for the handler that speaks HTTP/1.1 and, without
// TLS, HTTP/2: what the control socket needs. Its Shutdown ends streams that would go
// on for ever with an error, and waits for everything else.
func NewServer(h http.Handler) *http.Server {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	stopping, stop := context.WithCancel(context.Background())
	s := &http.Server{
		Handler: h, Protocols: p, ReadHeaderTimeout: 10 * time.Second,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000},
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.Background(), stoppingKey{}, stopping)
		},
	}
	s.RegisterOnShutdown(stop)
	return s
}

// stoppingKey finds the context that ends when the server begins to stop.
type stoppingKey struct{}

// endless are the streams that a client may keep open for ever.
var endless = map[string]bool{
	orlopv1connect.PodsLogsProcedure: true, orlopv1connect.PodsEventsProcedure: true, orlopv1connect.PodsExecProcedure: true,
	orlopv1connect.PodsAttachProcedure: true, orlopv1connect.PodsPortForwardProcedure: true,
}

// interceptor maps errors in one place, and keeps requests waiting until the daemon
// has taken stock.
type interceptor struct{ *server }

func (i interceptor) admit(ctx context.Context, procedure string) error {
	if i.o.Ready == nil || procedure == orlopv1connect.SystemInfoProcedure || procedure == orlopv1connect.SystemVersionProcedure {
		return nil
	}
	t := time.NewTimer(readyTimeout)
	defer t.Stop()
	select {
	case <-i.o.Ready:
		return nil
	case <-t.C:
		return errs.New(errs.Unavailable, "the daemon is still taking stock of what runs; try again, or see its log")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// WrapUnary implements connect.Interceptor.
func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (resp connect.AnyResponse, err error) {
		err = i.watched(ctx, req.Spec().Procedure, req.Header(), func(ctx context.Context) error {
			if err := i.admit(ctx, req.Spec().Procedure); err != nil {
				return encodeError(err)
			}
			var err error
			resp, err = next(ctx, req)
			return i.encode(req.Spec().Procedure, err)
		})
		if err != nil {
			return nil, err
		}
		return resp, nil
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	handle := func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := i.admit(ctx, conn.Spec().Procedure); err != nil {
			return encodeError(err)
		}
		stopping, ok := ctx.Value(stoppingKey{}).(context.Context)
		if !ok || !endless[conn.Spec().Procedure] {
			return i.encode(conn.Spec().Procedure, next(ctx, conn))
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(stopping, cancel)()
		err := next(ctx, conn)
		if stopping.Err() != nil && (err == nil || ctx.Err() != nil) {
			err = errs.New(errs.Unavailable, "the daemon is stopping; containers go on")
		}
		return i.encode(conn.Spec().Procedure, err)
	}
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return i.watched(ctx, conn.Spec().Procedure, conn.RequestHeader(), func(ctx context.Context) error { return handle(ctx, conn) })
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i interceptor) encode(procedure string, err error) error {
	if err == nil {
		return nil
	}
	if errs.KindOf(err) == errs.Internal {
		i.log.Warn("request failed", "procedure", procedure, "error", err)
	}
	return encodeError(err)
}
