// Command tool is what the end-to-end tests run in containers.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch arg := os.Args[2:]; os.Args[1] {
	case "exit": // CODE: with a line on each stream
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
		code, _ := strconv.Atoi(arg[0])
		os.Exit(code)
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
	case "write": // BYTES
		n, _ := strconv.ParseInt(arg[0], 10, 64)
		io.CopyN(os.Stdout, zeros{}, n)
	case "leave": // a child that keeps the streams
		p, err := os.StartProcess("/bin/tool", []string{"tool", "sleep"}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
		fmt.Println("left", p.Pid, err)
	case "sleep":
		signal.Ignore(syscall.SIGPIPE)
		time.Sleep(time.Hour)
	case "count": // a line each tenth of a second
		for i := 0; ; i++ {
			fmt.Println("count", i)
			time.Sleep(100 * time.Millisecond)
		}
	case "listen": // PORT: echoes lines, says bye at the end of the input
		l, err := net.Listen("tcp", "127.0.0.1:"+arg[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("listening")
		for {
			c, err := l.Accept()
			if err != nil {
				os.Exit(1)
			}
			go func() {
				defer c.Close()
				for sc := bufio.NewScanner(c); sc.Scan(); {
					fmt.Fprintln(c, "echo", sc.Text())
				}
				fmt.Fprintln(c, "bye")
			}()
		}
	case "hold": // PORT: takes connections, and neither reads nor writes
		l, err := net.Listen("tcp", "127.0.0.1:"+arg[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var all []net.Conn
		for {
			c, err := l.Accept()
			if err != nil {
				os.Exit(1)
			}
			all = append(all, c)
		}
	case "family": // waits for a child that waits
		p, err := os.StartProcess("/bin/tool", []string{"tool", "sleep"}, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
		if err == nil {
			_, err = p.Wait()
		}
		fmt.Println(err)
	case "terminal":
		terminal()
	case "look": // WHAT…
		for _, what := range arg {
			look(what)
		}
		fmt.Println("end of look")
	default:
		pod(os.Args[1], arg)
	}
}

// terminal answers commands typed at it.
func terminal() {
	resized := make(chan os.Signal, 8)
	signal.Notify(resized, syscall.SIGWINCH)
	interrupted := make(chan os.Signal, 8)
	signal.Notify(interrupted, os.Interrupt)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(os.Stdin); sc.Scan(); {
			lines <- sc.Text()
		}
	}()
	size := func(what string) {
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			fmt.Println("no terminal:", err)
			return
		}
		fmt.Printf("%s %d columns %d rows\n", what, ws.Col, ws.Row)
	}
	fmt.Println("ready, TERM", os.Getenv("TERM"))
	for {
		select {
		case <-resized:
			size("now")
		case <-interrupted:
			fmt.Println("interrupted")
		case line, ok := <-lines:
			switch {
			case !ok:
				fmt.Println("end of input")
				return
			case line == "size":
				size("has")
			case strings.HasPrefix(line, "exit "):
				code, _ := strconv.Atoi(line[5:])
				os.Exit(code)
			default:
				fmt.Println("typed", line)
			}
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
