// Command load sends one AdmissionReview over and over, as the API server would, and prints how long the answers took.
//
// HTTP/1.1 over TLS with connections kept alive, one review at a time on each: that is how the API server calls a
// webhook behind a service. Every answer is read to its end and has to be the one that is expected; anything else
// counts as an error and not as a request.
//
// Easy to get wrong: with -rate reviews come when they come (at random, with this many a second on average) and not
// when a connection happens to be free. The time that one waits for a connection counts, else a slow server would
// look good by being asked less.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	patience   = 5 * time.Second       // for one answer; the server is told, by ?timeout=
	pause      = 10 * time.Millisecond // after an error, so that a server that is gone is not hammered
	maxErrors  = 1000                  // then the run ends
	clockTicks = 100                   // a second, in /proc/PID/stat: the same on every Linux
)

type options struct {
	url, ca, body, expect, token string
	connections, count, pid      int
	seconds, warmUp, rate        float64
	once                         bool
}

// result is what is printed: one line of JSON.
type result struct {
	Requests    int     `json:"requests"`
	Seconds     float64 `json:"seconds"`
	PerSecond   float64 `json:"per_second"`
	P50         float64 `json:"p50_ms"`
	P90         float64 `json:"p90_ms"`
	P99         float64 `json:"p99_ms"`
	Max         float64 `json:"max_ms"`
	Errors      int     `json:"errors"`
	FirstError  string  `json:"first_error"`
	Connections int     `json:"connections"`
	Opened      int64   `json:"connections_opened"`
	ServerCPU   float64 `json:"server_cpu_seconds"` // of process -pid, while requests were counted; -1: not known
}

func main() {
	var o options
	flag.StringVar(&o.url, "url", "", "where to POST to; ?timeout=5s is added")
	flag.StringVar(&o.ca, "ca", "", "file with the CA that signed the server's certificate, PEM")
	flag.StringVar(&o.body, "body", "", "file with the review")
	flag.StringVar(&o.expect, "expect", "", "what every answer has to contain")
	flag.StringVar(&o.token, "token", "", "placeholder in the review that becomes a number of the same width, new each time")
	flag.IntVar(&o.connections, "connections", 1, "connections")
	flag.IntVar(&o.count, "count", 0, "stop after this many requests (0: none)")
	flag.IntVar(&o.pid, "pid", 0, "process whose CPU time is measured, from /proc (0: none)")
	flag.Float64Var(&o.seconds, "seconds", 3, "stop after this time")
	flag.Float64Var(&o.warmUp, "warm-up", 0.3, "seconds of requests that are not counted, before")
	flag.Float64Var(&o.rate, "rate", 0, "requests a second over all connections, at random times (0: as many as can be)")
	flag.BoolVar(&o.once, "once", false, "a new connection for each request")
	flag.Parse()
	debug.SetGCPercent(800) // this program's own pauses are not what is measured
	found, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		os.Exit(1)
	}
}

func run(o options) (*result, error) {
	body, err := os.ReadFile(o.body)
	if err != nil {
		return nil, err
	}
	authority, err := os.ReadFile(o.ca)
	if err != nil {
		return nil, err
	}
	trusted := x509.NewCertPool()
	if !trusted.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s holds no certificate", o.ca)
	}
	if o.connections < 1 || o.seconds <= 0 {
		return nil, fmt.Errorf("-connections and -seconds must be more than 0")
	}
	reviews, err := newReviews(body, o.token)
	if err != nil {
		return nil, err
	}
	var opened atomic.Int64
	callers := make([]*caller, o.connections)
	for i := range callers {
		callers[i] = newCaller(o, reviews, trusted, &opened)
	}
	warm := time.Now().Add(time.Duration(o.warmUp * float64(time.Second)))
	each(callers, func(c *caller) { c.warmUp(warm) })
	for _, c := range callers {
		if problem := c.firstError(); problem != "" {
			return nil, fmt.Errorf("the first requests failed: %s", problem)
		}
	}

	plan := newPlan(o)
	before := cpuTime(o.pid)
	started := time.Now()
	plan.begin(started)
	each(callers, func(c *caller) { c.work(plan) })
	elapsed := time.Since(started)
	return summary(callers, elapsed, before, cpuTime(o.pid), opened.Load()), nil
}

func each(callers []*caller, do func(*caller)) {
	var all sync.WaitGroup
	for _, c := range callers {
		all.Add(1)
		go func() {
			defer all.Done()
			do(c)
		}()
	}
	all.Wait()
}

// reviews makes the bodies: all the same, or each with a number of its own in place of the token.
type reviews struct {
	body   []byte
	places []int
	width  int
	next   atomic.Int64
}

func newReviews(body []byte, token string) (*reviews, error) {
	r := &reviews{body: body, width: len(token)}
	if token == "" {
		return r, nil
	}
	for at := 0; ; {
		found := bytes.Index(body[at:], []byte(token))
		if found < 0 {
			break
		}
		r.places = append(r.places, at+found)
		at += found + len(token)
	}
	if len(r.places) == 0 {
		return nil, fmt.Errorf("the review does not contain %q", token)
	}
	r.next.Store(time.Now().UnixMicro()) // no number that an earlier run has used: the clock is faster than we are
	return r, nil
}

func (r *reviews) make() []byte {
	if r.width == 0 {
		return r.body
	}
	digits := fmt.Sprintf("%0*d", r.width, r.next.Add(1))
	digits = digits[len(digits)-r.width:]
	made := bytes.Clone(r.body)
	for _, at := range r.places {
		copy(made[at:], digits)
	}
	return made
}

// plan says when the next request is due, and when it is enough.
type plan struct {
	mutex  sync.Mutex
	random *rand.Rand
	rate   float64
	left   int // -1: no limit
	due    time.Time
	length time.Duration
	end    time.Time
	errors atomic.Int64
}

func newPlan(o options) *plan {
	p := &plan{random: rand.New(rand.NewSource(1)), rate: o.rate, left: -1}
	p.length = time.Duration(o.seconds * float64(time.Second))
	if o.count > 0 {
		p.left = o.count
	}
	return p
}

func (p *plan) begin(now time.Time) {
	p.due, p.end = now, now.Add(p.length)
}

// take waits until a request is due and returns the time from which its answer is waited for; false if it is enough.
func (p *plan) take() (time.Time, bool) {
	p.mutex.Lock()
	if p.left == 0 || p.errors.Load() > maxErrors {
		p.mutex.Unlock()
		return time.Time{}, false
	}
	if p.left > 0 {
		p.left--
	}
	due := p.due
	if p.rate > 0 {
		p.due = due.Add(time.Duration(p.random.ExpFloat64() / p.rate * float64(time.Second)))
	}
	p.mutex.Unlock()
	now := time.Now()
	if p.rate == 0 {
		return now, now.Before(p.end)
	}
	if !due.Before(p.end) {
		return time.Time{}, false
	}
	if wait := due.Sub(now); wait > 0 {
		time.Sleep(wait)
		return time.Now(), true // the timer's being late is ours, not the server's
	}
	return due, true // no connection was free when it came: its waiting counts
}

// caller is one connection and what it has seen.
type caller struct {
	client *http.Client
	url    string
	expect []byte
	all    *reviews
	times  []time.Duration
	errors []error
}

func newCaller(o options, all *reviews, trusted *x509.CertPool, opened *atomic.Int64) *caller {
	dialer := &net.Dialer{Timeout: patience}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12},
		TLSNextProto:      map[string]func(string, *tls.Conn) http.RoundTripper{}, // no HTTP/2
		MaxConnsPerHost:   1,
		DisableKeepAlives: o.once,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			opened.Add(1)
			return dialer.DialContext(ctx, network, address)
		},
	}
	return &caller{
		client: &http.Client{Transport: transport, Timeout: patience},
		url:    o.url + "?timeout=" + patience.String(),
		expect: []byte(o.expect),
		all:    all,
		times:  make([]time.Duration, 0, 1<<16),
	}
}

// warmUp connects, and asks until the time is over; what it sees is forgotten unless it fails.
func (c *caller) warmUp(until time.Time) {
	for {
		if err := c.ask(); err != nil {
			c.errors = append(c.errors, err)
			return
		}
		if !time.Now().Before(until) {
			return
		}
	}
}

func (c *caller) firstError() string {
	if len(c.errors) == 0 {
		return ""
	}
	return c.errors[0].Error()
}

func (c *caller) work(p *plan) {
	for {
		from, more := p.take()
		if !more {
			return
		}
		if err := c.ask(); err != nil {
			c.errors = append(c.errors, err)
			p.errors.Add(1)
			time.Sleep(pause)
			continue
		}
		c.times = append(c.times, time.Since(from))
	}
}

func (c *caller) ask() error {
	request, err := http.NewRequest(http.MethodPost, c.url, bytes.NewReader(c.all.make()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/json, */*")
	request.Header.Set("User-Agent", "kube-apiserver-admission")
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Contains(answer, c.expect) {
		return fmt.Errorf("status %d: %.300s", response.StatusCode, answer)
	}
	return nil
}

func summary(callers []*caller, elapsed time.Duration, before, after float64, opened int64) *result {
	var times []time.Duration
	found := &result{Seconds: elapsed.Seconds(), Opened: opened, ServerCPU: -1, Connections: len(callers)}
	for _, c := range callers {
		times = append(times, c.times...)
		found.Errors += len(c.errors)
		if found.FirstError == "" {
			found.FirstError = c.firstError()
		}
	}
	if before >= 0 && after >= 0 {
		found.ServerCPU = after - before
	}
	found.Requests = len(times)
	found.PerSecond = float64(len(times)) / elapsed.Seconds()
	if len(times) == 0 {
		return found
	}
	slices.Sort(times)
	at := func(share float64) float64 { return milliseconds(times[int(share*float64(len(times)-1))]) }
	found.P50, found.P90, found.P99, found.Max = at(0.5), at(0.9), at(0.99), at(1)
	return found
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// cpuTime returns the seconds of CPU that a process has used so far, -1 where there is no /proc, or no such process.
func cpuTime(pid int) float64 {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if pid == 0 || err != nil {
		return -1
	}
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:])) // a command's name may hold anything
	if len(fields) < 13 {
		return -1
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err1 != nil || err2 != nil {
		return -1
	}
	return (user + system) / clockTicks
}
