package cri

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/klog/v2"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// StreamingTLS are the files, PEM each, of the sessions' TLS. They are read anew for each
// connection, so that they can be renewed in place.
type StreamingTLS struct {
	CertFile, KeyFile string // "": no TLS
	// ClientCAFile has the authorities of clients' certificates; "" asks for none, as a
	// session's address is secret.
	ClientCAFile string
}

// config reads the files. Errors are errs.Invalid.
func (t StreamingTLS) config() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, errs.New(errs.Invalid, "cri.streamingTLS: certificate %s with key %s: %w", t.CertFile, t.KeyFile, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}} // sessions upgrade
	if t.ClientCAFile != "" {
		pem, err := os.ReadFile(t.ClientCAFile)
		if err != nil {
			return nil, errs.New(errs.Invalid, "cri.streamingTLS: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.Invalid, "cri.streamingTLS: %s has no certificate", t.ClientCAFile)
		}
	}
	return c, nil
}

// listenStreaming takes the address of the sessions. Their URLs carry a token that is good
// once, within a minute.
func (s *Server) listenStreaming() error {
	klog.SetSlogLogger(s.log) // what the library says of sessions that fail
	scheme := "http"
	if s.o.StreamingTLS.CertFile != "" {
		scheme = "https"
		if _, err := s.o.StreamingTLS.config(); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", s.o.Streaming)
	if err != nil {
		return errs.New(errs.Unavailable, "listen for sessions: %w", err)
	}
	c := streaming.DefaultConfig
	c.Addr = l.Addr().String()
	c.StreamCreationTimeout = streamsTime
	c.BaseURL = &url.URL{Scheme: scheme, Host: c.Addr}
	if s.streaming, err = streaming.NewServer(c, sessions{s}); err != nil {
		l.Close()
		return err
	}
	l = connections{l}
	if scheme == "https" {
		l = tls.NewListener(l, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := s.o.StreamingTLS.config()
			if err != nil {
				s.log.Error("a session cannot be served", "error", err)
			}
			return c, err
		}})
	}
	s.listener = l
	s.slots = make(chan struct{}, s.o.MaxSessions)
	return nil
}
