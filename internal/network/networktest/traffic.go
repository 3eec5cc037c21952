package networktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Ping sends an echo request from a namespace and waits for its answer.
func Ping(ns, to string) error {
	a := netip.MustParseAddr(to)
	network, listen, proto := "ip4:icmp", "0.0.0.0", 1
	var typ icmp.Type = ipv4.ICMPTypeEcho
	if a.Is6() {
		network, listen, proto, typ = "ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest
	}
	var c *icmp.PacketConn
	err := Do(ns, func() (err error) {
		c, err = icmp.ListenPacket(network, listen)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	id := int(time.Now().UnixNano() & 0xffff)
	msg, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("orlop")}}).Marshal(nil)
	if err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.WriteTo(msg, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("ping %s: %w", to, err)
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil {
			return err
		}
		if e, ok := m.Body.(*icmp.Echo); ok && e.ID == id && (m.Type == ipv4.ICMPTypeEchoReply || m.Type == ipv6.ICMPTypeEchoReply) {
			if from.String() != a.String() {
				return fmt.Errorf("ping %s: answer from %s", to, from)
			}
			return nil
		}
	}
}

// patience is how long an answer may take; absence of one is found out in this time too.
const patience = time.Second

// Serve listens in a namespace ("tcp4", "udp6", …) and answers each message with a name and
// the peer's address as it sees it, until the test ends.
func Serve(t testing.TB, ns, network, address, name string) {
	t.Helper()
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	var tcp net.Listener
	var udp net.PacketConn
	err := Do(ns, func() (err error) {
		if network[:3] == "tcp" {
			tcp, err = lc.Listen(t.Context(), network, address)
		} else {
			udp, err = lc.ListenPacket(t.Context(), network, address)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if udp != nil {
		t.Cleanup(func() { udp.Close() })
		go func() {
			buf := make([]byte, 64<<10)
			for {
				_, from, err := udp.ReadFrom(buf)
				if err != nil {
					return
				}
				udp.WriteTo([]byte(name+" "+from.String()), from)
			}
		}()
		return
	}
	t.Cleanup(func() { tcp.Close() })
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				buf := make([]byte, 64)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s", name, c.RemoteAddr())
				}
			}()
		}
	}()
}

// Ask sends a message from a namespace and returns the server's name and the address by
// which it sees the sender.
func Ask(ns, network, address string) (name string, peer netip.Addr, err error) {
	c, err := Dial(ns, network, address)
	if err != nil {
		return "", peer, err
	}
	defer c.Close()
	return AskOn(c)
}

// Dial connects from a namespace.
func Dial(ns, network, address string) (c net.Conn, err error) {
	err = Do(ns, func() (err error) {
		d := net.Dialer{Timeout: patience}
		d.SetMultipathTCP(false)
		// A goroutine of the dialer's would not be in the namespace: numbers need none.
		c, err = d.Dial(network, address)
		return err
	})
	return c, err
}

// AskOn is Ask on a connection that is there.
func AskOn(c net.Conn) (name string, peer netip.Addr, err error) {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("?")); err != nil {
		return "", peer, err
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return "", peer, err
	}
	word, addr, _ := bytes.Cut(buf[:n], []byte(" "))
	ap, err := netip.ParseAddrPort(string(addr))
	return string(word), ap.Addr().Unmap(), err
}

// Unanswered tells that an error means that nobody answered, or that a way was refused.
func Unanswered(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) || errors.Is(err, io.EOF)
}

// Checksum is the Internet checksum (RFC 1071).
func Checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
