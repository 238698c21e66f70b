"""Counts calls of one function with Frida until a line comes in; then prints the count.

Run as: frida-interceptor.py PID ADDRESS c|js count|return
"""

import sys

import frida

pid, address, callback, work = sys.argv[1:]
event = "onEnter" if work == "count" else "onLeave"

c_callback = (
    """
const hits = Memory.alloc(8);
const callbacks = new CModule(`
  #include <gum/guminterceptor.h>
  extern volatile unsigned long hits;
  void EVENT(GumInvocationContext *context) { hits++; }
`, { hits });
Interceptor.attach(ptr("ADDRESS"), { EVENT: callbacks.EVENT });
rpc.exports = { count() { return hits.readU64().toString(); } };
"""
)
js_callback = (
    """
let hits = 0;
Interceptor.attach(ptr("ADDRESS"), { EVENT() { hits++; } });
rpc.exports = { count() { return hits; } };
"""
)

source = (c_callback if callback == "c" else js_callback).replace("EVENT", event).replace("ADDRESS", address)
session = frida.attach(int(pid))
script = session.create_script(source + "Interceptor.flush();")
script.load()
print("ready", flush=True)
sys.stdin.readline()
print(script.exports_sync.count(), flush=True)
script.unload()
session.detach()
