package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// session opens what the CRI gives the address of, as kubelet does for its client.
func (c *client) session(t *testing.T, protocol, address string, conf *tls.Config) *session {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSession(t, c.n.netns, protocol, u, conf)
	if err != nil {
		t.Fatalf("%s: %v\n%s", address, err, c.n.tail())
	}
	return s
}

func (c *client) exec(t *testing.T, r *v1.ExecRequest) string {
	t.Helper()
	answer, err := c.Exec(deadline(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Url
}

// Exec, Attach and PortForward by WebSocket and by SPDY, with and without TLS.
func TestCRISessions(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	main := c.start(t, pod, criContainer("main", "listen", "7000"))
	reader := criContainer("reader", "cat")
	reader.Stdin, reader.StdinOnce = true, true
	readerID := c.start(t, pod, reader)

	sessions := func(t *testing.T, conf *tls.Config) {
		const v4 = remotecommand.StreamProtocolV4Name
		t.Run("streams", func(t *testing.T) {
			address := c.exec(t, &v1.ExecRequest{ContainerId: main, Cmd: []string{"/bin/tool", "cat"}, Stdin: true, Stdout: true, Stderr: true})
			s := c.session(t, v4, address, conf)
			s.send(t, channelStdin, "there and back\n")
			s.until(t, channelStdout, "there and back\n")
			u, _ := url.Parse(address)
			if _, err := openSession(t, n.netns, v4, u, conf); err == nil {
				t.Error("an address opens a second session")
			}
		})
		t.Run("status", func(t *testing.T) {
			s := c.session(t, v4, c.exec(t, &v1.ExecRequest{ContainerId: main, Cmd: []string{"/bin/tool", "exit", "7"}, Stdout: true, Stderr: true}), conf)
			if got := s.end(t); got != "7" || s.got[channelStdout].String() != "to stdout\n" || s.got[channelStderr].String() != "to stderr\n" {
				t.Errorf("ended with %s, wrote %q and %q", got, s.got[channelStdout].String(), s.got[channelStderr].String())
			}
		})
		t.Run("terminal", func(t *testing.T) {
			s := c.session(t, v4, c.exec(t, &v1.ExecRequest{ContainerId: main, Cmd: []string{"/bin/tool", "terminal"}, Stdin: true, Stdout: true, Tty: true}), conf)
			s.until(t, channelStdout, "ready")
			s.send(t, channelResize, `{"Width":111,"Height":33}`)
			s.until(t, channelStdout, "now 111 columns 33 rows")
			s.send(t, channelStdin, "exit 5\n")
			if got := s.end(t); got != "5" {
				t.Errorf("ended with %s", got)
			}
		})
		t.Run("port", func(t *testing.T) {
			answer, err := c.PortForward(deadline(t), &v1.PortForwardRequest{PodSandboxId: pod, Port: []int32{7000}})
			if err != nil {
				t.Fatal(err)
			}
			s := c.session(t, "v4.channel.k8s.io", answer.Url, conf)
			s.until(t, 0, string(binary.LittleEndian.AppendUint16(nil, 7000)))
			s.send(t, 0, "hello\n")
			s.until(t, 0, "echo hello\n")
		})
		t.Run("spdy", func(t *testing.T) {
			s, err := n.open(c.exec(t, &v1.ExecRequest{ContainerId: main, Cmd: []string{"/bin/tool", "cat"}, Stdin: true, Stdout: true, Stderr: true}), v4, conf, streamType, "error", "stdin", "stdout", "stderr")
			if err != nil {
				t.Fatal(err)
			}
			defer s.vanish()
			big := strings.Repeat("0123456789abcdef", 64<<10)
			go func() {
				io.WriteString(s.by["stdin"], big)
				s.by["stdin"].Close()
			}()
			got, err := io.ReadAll(s.by["stdout"])
			if err != nil || string(got) != big {
				t.Errorf("%d of %d bytes came back, %v", len(got), len(big), err)
			}
			ended, err := io.ReadAll(s.by["error"])
			if err != nil || !bytes.Contains(ended, []byte("Success")) {
				t.Errorf("it ended with %q, %v", ended, err)
			}
		})
		t.Run("spdy port", func(t *testing.T) {
			answer, err := c.PortForward(deadline(t), &v1.PortForwardRequest{PodSandboxId: pod})
			if err != nil {
				t.Fatal(err)
			}
			s, err := n.open(answer.Url, portforward.ProtocolV1Name, conf, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.vanish()
			for i, port := range []string{"7000", "7001"} { // of which one listens
				h := http.Header{portforward.PortHeader: {port}, portforward.PortForwardRequestIDHeader: {fmt.Sprint(i)}}
				h.Set("streamType", "error")
				bad, err := s.spdy.CreateStream(h)
				if err != nil {
					t.Fatal(err)
				}
				h.Set("streamType", "data")
				var got []byte
				data, err := s.spdy.CreateStream(h)
				if err == nil {
					io.WriteString(data, "hello\n")
					data.Close()
					got, _ = io.ReadAll(data)
				} // else it was reset, as nobody listens
				bad.Close()
				said, _ := io.ReadAll(bad)
				if listens := i == 0; listens != (string(got) == "echo hello\nbye\n") || listens != (len(said) == 0) {
					t.Errorf("port %s answers %q, error %q", port, got, said)
				}
			}
		})
	}
	t.Run("plain", func(t *testing.T) { sessions(t, nil) })

	t.Run("attach", func(t *testing.T) {
		answer, err := c.Attach(deadline(t), &v1.AttachRequest{ContainerId: readerID, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		s := c.session(t, remotecommand.StreamProtocolV4Name, answer.Url, nil)
		s.send(t, channelStdin, "to the container\n")
		s.until(t, channelStdout, "to the container\n")
		s.ws.Close() // the protocol has no other end of the input
		if st := c.ended(t, readerID); st.ExitCode != 0 {
			t.Errorf("the container ended with %d, %s", st.ExitCode, st.Reason)
		}
	})

	t.Run("tls", func(t *testing.T) {
		dir := t.TempDir()
		ca := newAuthority(t)
		for name, file := range map[string][]byte{"ca": ca.pem, "cert": ca.issue(t, x509.ExtKeyUsageServerAuth), "other": newAuthority(t).pem} {
			n.write(dir+"/"+name, string(file))
		}
		// The certificate's file has its key, too.
		n.configure(fmt.Sprintf("cri: {streamingTLS: {certFile: %s/cert, keyFile: %s/cert, clientCAFile: %s/ca}}\n", dir, dir, dir))
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca.pem)
		pair := ca.issue(t, x509.ExtKeyUsageClientAuth)
		cert, err := tls.X509KeyPair(pair, pair)
		if err != nil {
			t.Fatal(err)
		}
		conf := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{cert}}
		t.Run("sessions", func(t *testing.T) { sessions(t, conf) })
		address := c.exec(t, &v1.ExecRequest{ContainerId: main, Cmd: []string{"/bin/tool", "exit", "0"}, Stdout: true})
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "https" {
			t.Fatalf("address %q, %v", address, err)
		}
		if _, err := openSession(t, n.netns, remotecommand.StreamProtocolV4Name, u, &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}); err == nil {
			t.Error("a client without a certificate has a session")
		}
		// Other authorities' clients from the next connection on.
		n.write(dir+"/ca", string(newAuthority(t).pem))
		if _, err := openSession(t, n.netns, remotecommand.StreamProtocolV4Name, u, conf); err == nil {
			t.Error("a client of an authority that is trusted no more has a session")
		}
	})
}

// authority signs certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns a certificate and its key.
func (a *authority) issue(t *testing.T, usage x509.ExtKeyUsage) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})...)
}
