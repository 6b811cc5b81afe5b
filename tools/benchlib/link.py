"""A far line on this machine: a relay that delays both ways, and lets all its connections together have so many bytes a second.

A program of its own: PORT UPSTREAM-PORT BYTES-PER-SECOND SECONDS-ONE-WAY. Not a proxy: it passes on what comes. All
connections share one clock downstream, as they share a line: pieces of 64 KiB leave one after the other, and each arrives
later by the delay; upstream there is only the delay. A new connection carries nothing for a round trip. There is neither loss
nor TCP's slow start, so it is kinder than a real line to everybody. One thread, `select` with its microseconds.
"""
import collections
import os
import select
import socket
import sys
import time

PIECE = 64 << 10
# How far ahead of the clock a connection may read: more than a timer's precision, so that waking up late costs nothing.
AHEAD = 0.004
# How many pieces may be under way on a connection: more than the line holds.
UNDER_WAY = 96
SO_RCVBUFFORCE, BUFFER = 33, 2 << 20


class Line:
    """When the line is free for the next byte."""

    def __init__(self, rate):
        self.rate, self.free = rate, 0.0

    def take(self, count, now):
        self.free = max(self.free, now) + count / self.rate
        return self.free


class Way:
    """One direction of a connection."""

    def __init__(self, source, sink, line, delay, opens):
        self.source, self.sink, self.line, self.delay = source, sink, line, delay
        self.pieces = collections.deque()
        self.next_read = opens
        self.full = self.ended = self.closed = False

    def reads(self, now):
        return not self.ended and len(self.pieces) < UNDER_WAY and self.next_read <= now

    def read(self, now):
        piece = self.source.recv(PIECE)
        if not piece:
            self.ended = True
            return
        left = self.line.take(len(piece), now) if self.line else now
        self.pieces.append((left + self.delay, memoryview(piece)))
        self.next_read = left - AHEAD

    def write(self, now):
        """Writes what has arrived, and the end when it has."""
        self.full = False
        while self.pieces and self.pieces[0][0] <= now:
            arrives, piece = self.pieces[0]
            try:
                sent = os.write(self.sink.fileno(), piece)  # not `send`, which the kernel does not count as written
            except BlockingIOError:
                sent = 0
            if sent < len(piece):
                self.pieces[0] = (arrives, piece[sent:])
                self.full = True
                return
            self.pieces.popleft()
        if self.ended and not self.pieces and not self.closed:
            self.closed = True
            self.sink.shutdown(socket.SHUT_WR)

    def due(self, now):
        """When there is something to do without being told by the kernel."""
        due = []
        if self.pieces and not self.full:
            due.append(self.pieces[0][0])
        if not self.ended and len(self.pieces) < UNDER_WAY and self.next_read > now:
            due.append(self.next_read)
        return due


def connected(upstream):
    """A connection whose buffer holds more than the line carries while its server waits for a processor."""
    server = socket.socket()
    try:
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    except PermissionError:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    server.connect(("127.0.0.1", upstream))
    return server


class Connection:
    def __init__(self, client, upstream, line, delay):
        server = connected(upstream)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        opens = time.monotonic() + 2 * delay
        self.ways = [Way(client, server, None, delay, opens), Way(server, client, line, delay, opens)]

    def step(self, ready, now):
        """Carries on; whether there is more to come."""
        try:
            for way in self.ways:
                if way.source in ready and way.reads(now):
                    way.read(now)
                if way.pieces or way.ended:
                    way.write(now)
        except OSError:
            return False
        return not all(way.closed for way in self.ways)

    def close(self):
        for way in self.ways:
            way.source.close()


def carry(port, upstream, rate, delay):
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    line, connections = Line(rate), []
    while True:
        now = time.monotonic()
        ways = [way for connection in connections for way in connection.ways]
        due = [moment for way in ways for moment in way.due(now)]
        limit = max(0.0, min(due) - now) if due else None
        reading = [way.source for way in ways if way.reads(now)]
        writing = [way.sink for way in ways if way.full]
        ready, _, _ = select.select([listener, *reading], writing, [], limit)
        now, ready = time.monotonic(), set(ready)
        if listener in ready:
            try:
                connections.append(Connection(listener.accept()[0], upstream, line, delay))
            except OSError:
                pass
        for connection in list(connections):
            if not connection.step(ready, now):
                connections.remove(connection)
                connection.close()


def go_first():
    """A line waits for no processor: before all programs, where that is allowed. It takes a tenth of one."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        pass


if __name__ == "__main__":
    go_first()
    carry(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
