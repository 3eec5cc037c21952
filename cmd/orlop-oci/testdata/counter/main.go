// Command counter is what a checkpoint is tested with: it goes on counting, and tells in every
// line what a restore could have lost.
//
// A line of /log has the count; the sum over it that a child keeps, which is asked through pipes;
// ok as long as a megabyte of memory is what it was; what a file of a tmpfs says, that only
// this process has a descriptor of; and its number. With "tty" lines of standard input are
// answered by standard output too; with "tcp" the child is asked through a connection instead of
// pipes, on the port that is given.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child(os.Stdin, os.Stdout)
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		if err := serve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "counter:", err)
			os.Exit(1)
		}
		return
	}
	if err := count(); err != nil {
		fmt.Fprintln(os.Stderr, "counter:", err)
		os.Exit(1)
	}
}

// child adds up the numbers that it reads, and answers each with the sum.
func child(in io.Reader, out io.Writer) {
	var n, sum int
	for {
		if _, err := fmt.Fscan(in, &n); err != nil {
			return
		}
		sum += n
		fmt.Fprintln(out, sum)
	}
}

// serve is the child behind a connection.
func serve(port string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // which CRIU cannot save
	l, err := lc.Listen(context.Background(), "tcp4", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go child(c, c)
	}
}

// connect starts the child behind a connection, and connects to it.
func connect(port string) (net.Conn, error) {
	if _, err := syscall.ForkExec("/proc/self/exe", []string{"counter", "serve", port}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}}); err != nil {
		return nil, err
	}
	for {
		c, err := net.Dial("tcp4", "127.0.0.1:"+port)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// pipes start the child behind pipes.
func pipes() (in io.Writer, out io.Reader, err error) {
	childIn, toChild, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	fromChild, childOut, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	// Package os would keep a pidfd of it, which CRIU has learnt to save after version 3.17.
	_, err = syscall.ForkExec("/proc/self/exe", []string{"counter", "child"}, &syscall.ProcAttr{Files: []uintptr{childIn.Fd(), childOut.Fd(), 2}})
	childIn.Close()
	childOut.Close()
	return toChild, fromChild, err
}

func memory(b []byte) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
}

func count() error {
	var want, have [1 << 20]byte
	memory(have[:])
	log, err := os.OpenFile("/log", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	const name = "/tmp/file"
	if err := os.WriteFile(name, []byte("kept"), 0o644); err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	var in io.Writer
	var answers io.Reader
	if len(os.Args) > 2 && os.Args[1] == "tcp" {
		c, err := connect(os.Args[2])
		if err != nil {
			return err
		}
		in, answers = c, c
	} else if in, answers, err = pipes(); err != nil {
		return err
	}
	out := bufio.NewReader(answers)
	if len(os.Args) > 1 && os.Args[1] == "tty" {
		go func() {
			s := bufio.NewScanner(os.Stdin)
			for s.Scan() {
				fmt.Println("answer to", s.Text())
			}
		}()
	}
	state := "ok"
	for n := 1; ; n++ {
		if n%16 == 0 {
			if memory(want[:]); !bytes.Equal(want[:], have[:]) {
				state = "LOST"
			}
		}
		have[n%len(have)]++ // written to, and the same again
		have[n%len(have)]--
		var sum int
		if _, err := fmt.Fprintln(in, n); err != nil {
			return err
		}
		if _, err := fmt.Fscanln(out, &sum); err != nil {
			return err
		}
		text, err := io.ReadAll(io.NewSectionReader(file, 0, 100))
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(log, n, sum, state, string(text), os.Getpid()); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}
