// Package cri serves the Kubernetes Container Runtime Interface, v1, on a unix socket: what
// kubelet, crictl and critest speak. It translates to calls on the pod and image domains
// (pod.Driven has the rules) and holds no state.
//
// Requests are idempotent as kubelet expects: stop and remove succeed for what is gone, and
// a RunPodSandbox or CreateContainer repeated after a deadline goes on with the one before.
package cri

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

// Images is what the server needs of the domain of images; *image.Store is it.
type Images interface {
	List(ctx context.Context) ([]image.Image, error)
	Resolve(ctx context.Context, nameOrID string) (image.Image, error)
	Use(ctx context.Context, nameOrID string) (image.Image, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Remove(ctx context.Context, nameOrID string, inUse func(digest.Digest) bool) (image.Removed, error)
	Usage(ctx context.Context) (bytes, inodes int64, err error)
}

// Options are what a Server serves.
type Options struct {
	Pods   *pod.Driven
	Images Images
	// UsedImages are the ids of images that containers of any pod use.
	UsedImages func() map[string]bool
	Version    string
	// ImageDir and ContainerDir are where images and writable layers are.
	ImageDir, ContainerDir string
	// SystemdCgroups tells kubelet which driver's paths to give.
	SystemdCgroups bool
	// Streaming is the address of exec, attach and port-forward sessions; "" is a free port
	// of the loopback interface.
	Streaming    string
	StreamingTLS StreamingTLS
	// MaxSessions is how many sessions may be open at a time; more are refused.
	MaxSessions int
	// Ready is closed once the daemon has taken stock; until then every request is
	// unavailable.
	Ready <-chan struct{}
	Watch *rpc.Watcher // nil: requests are neither measured nor traced
	Log   *slog.Logger
}

const (
	// maxMessage bounds an answer; kubelet and crictl take 16 MiB.
	maxMessage = 16 << 20
	// maxRequest bounds a request. The largest that can succeed are containers with as much
	// environment as the kernel takes, about two megabytes.
	maxRequest = 4 << 20
	// maxHeaders bounds the metadata of one.
	maxHeaders = 64 << 10
	// handshakeTime is how long a client may take until it speaks the protocol.
	handshakeTime = 20 * time.Second
)

// Server is the CRI's runtime and image service. It is safe for concurrent use.
type Server struct {
	v1.UnimplementedRuntimeServiceServer
	v1.UnimplementedImageServiceServer

	o         Options
	log       *slog.Logger
	grpc      *grpc.Server
	streaming streaming.Server
	listener  net.Listener  // of streaming
	slots     chan struct{} // of sessions
	forwarding
	layers usageCache
	cpu    cpuRates
}

// New returns a Server whose streaming address is taken.
func New(o Options) (*Server, error) {
	if o.Streaming == "" {
		o.Streaming = "127.0.0.1:0"
	}
	s := &Server{o: o, log: o.Log}
	if err := s.listenStreaming(); err != nil {
		return nil, err
	}
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest), grpc.MaxSendMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaders), grpc.ConnectionTimeout(handshakeTime),
		grpc.ChainUnaryInterceptor(s.watchUnary, s.unary), grpc.ChainStreamInterceptor(s.watchStream, s.stream),
	)
	v1.RegisterRuntimeServiceServer(s.grpc, s)
	v1.RegisterImageServiceServer(s.grpc, s)
	return s, nil
}

// Serve answers on the listener until Stop.
func (s *Server) Serve(l net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.serveStreaming() }()
	err := s.grpc.Serve(l)
	s.streaming.Stop()
	s.listener.Close()
	if serr := <-failed; err == nil && !errors.Is(serr, net.ErrClosed) {
		err = serr
	}
	return err
}

// Stop ends sessions, waits for requests for at most grace, and closes the listeners.
func (s *Server) Stop(grace time.Duration) {
	done := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-time.After(grace):
		s.grpc.Stop()
		<-done
	}
}

// unary guards and logs a request, and gives its error the protocol's code.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (answer any, err error) {
	begin := time.Now()
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a request panicked", "method", info.FullMethod, "panic", r)
			err = encodeError(errs.New(errs.Internal, "%s failed by a fault of the runtime; its log says more", info.FullMethod))
		}
		level := slog.LevelDebug
		if err != nil && errs.KindOf(err) == errs.Internal {
			level = slog.LevelWarn
		}
		err = encodeError(err)
		if s.log.Enabled(ctx, slog.LevelDebug) || err != nil {
			s.log.Log(ctx, level, "request", "method", info.FullMethod, "took", time.Since(begin).Round(time.Microsecond), "error", err)
		}
	}()
	if err := s.ready(); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("a request panicked", "method", info.FullMethod, "panic", r)
			err = errs.New(errs.Internal, "%s failed by a fault of the runtime; its log says more", info.FullMethod)
		}
		err = encodeError(err)
	}()
	if err := s.ready(); err != nil {
		return err
	}
	return handle(srv, stream)
}

func (s *Server) ready() error {
	select {
	case <-s.o.Ready:
		return nil
	default:
		return errs.New(errs.Unavailable, "the daemon is taking stock of what runs; try again")
	}
}
