// Package probe carries out one check of a container: a command, an HTTP request, a
// connection, or a gRPC health check.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Check is what to do. Exactly one field is set.
type Check struct {
	Exec []string
	HTTP *HTTP
	TCP  *TCP
	GRPC *GRPC
}

// HTTP is a GET that succeeds with 200 to 399.
type HTTP struct {
	Scheme  string // http, https
	Host    string // "": the target's address
	Port    uint16
	Path    string
	Headers [][2]string
}

// TCP succeeds if a connection is accepted.
type TCP struct {
	Host string
	Port uint16
}

// GRPC calls grpc.health.v1.Health/Check.
type GRPC struct {
	Port    uint16
	Service string
}

// Target is where the container is.
type Target struct {
	Addr string // for checks that name no host
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Exec func(ctx context.Context, argv []string) (code int, output []byte, err error)
}

// maxBody is how much of an answer is read.
const maxBody = 10 << 10

// maxRedirects is how many redirects are followed before they are taken for a loop.
const maxRedirects = 10

// Run carries the check out within ctx. An Exec that is errs.Unavailable could not be
// tried, which says nothing of the container.
func Run(ctx context.Context, c Check, t Target) Outcome {
	outcome := func(ok bool, message string) Outcome { return Outcome{OK: ok, Message: message} }
	switch {
	case c.HTTP != nil:
		return outcome(runHTTP(ctx, c.HTTP, t))
	case c.TCP != nil:
		conn, err := t.Dial(ctx, "tcp", t.join(c.TCP.Host, c.TCP.Port))
		if err != nil {
			return outcome(false, err.Error())
		}
		conn.Close()
		return outcome(true, "")
	case c.GRPC != nil:
		return outcome(runGRPC(ctx, c.GRPC, t))
	case len(c.Exec) > 0:
		code, out, err := t.Exec(ctx, c.Exec)
		switch {
		case errors.Is(err, errs.Unavailable):
			return Outcome{Unknown: true, Message: err.Error()}
		case errors.Is(err, context.DeadlineExceeded):
			return outcome(false, "the command did not end in time")
		case err != nil:
			return outcome(false, err.Error())
		case code != 0:
			return outcome(false, fmt.Sprintf("the command ended with %d: %s", code, strings.TrimSpace(string(out))))
		}
		return outcome(true, "")
	}
	return outcome(false, "the check says nothing to do")
}

func (t Target) join(host string, port uint16) string {
	if host == "" {
		host = t.Addr
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func runHTTP(ctx context.Context, h *HTTP, t Target) (bool, string) {
	addr := t.join(h.Host, h.Port)
	scheme := strings.ToLower(h.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, "GET", scheme+"://"+addr+"/"+strings.TrimPrefix(h.Path, "/"), nil)
	if err != nil {
		return false, err.Error()
	}
	req.Header.Set("User-Agent", "orlop-probe")
	req.Header.Set("Accept", "*/*")
	for _, kv := range h.Headers { // what the manifest says replaces what we would say
		if strings.EqualFold(kv[0], "user-agent") || strings.EqualFold(kv[0], "accept") {
			req.Header.Del(kv[0])
		}
	}
	for _, kv := range h.Headers {
		if strings.EqualFold(kv[0], "host") {
			req.Host = kv[1]
		}
		req.Header.Add(kv[0], kv[1])
	}
	client := http.Client{
		Transport: &http.Transport{
			DialContext: t.Dial, DisableKeepAlives: true, DisableCompression: true,
			// As in Kubernetes: a probe asks whether it answers, not who it is.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			switch {
			case next.URL.Hostname() != req.URL.Hostname():
				return http.ErrUseLastResponse // elsewhere: that it answered is enough
			case len(via) >= maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)); err != nil {
		return false, "read the answer: " + err.Error() // it began to answer and did not go on
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return false, "HTTP status " + resp.Status
	}
	return true, ""
}

func runGRPC(ctx context.Context, g *GRPC, t Target) (bool, string) {
	conn, err := grpc.NewClient("passthrough:///"+t.join("", g.Port),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("orlop-probe"),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return t.Dial(ctx, "tcp", addr) }))
	if err != nil {
		return false, err.Error()
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: g.Service})
	if err != nil {
		return false, err.Error()
	}
	if resp.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		return false, "the service says " + resp.Status.String()
	}
	return true, ""
}
