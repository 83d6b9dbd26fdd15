// A TCP proxy whose connections can be cut, to see what a client does about that.
'use strict';

const net = require('node:net');

/** Starts one before `url`; gives its URL, `cut()` and `close()`. */
async function proxy(url) {
  const { hostname, port } = new URL(url);
  const open = new Set();
  const server = net.createServer(near => {
    const far = net.connect(Number(port), hostname);
    for (const [from, to] of [[near, far], [far, near]]) {
      open.add(from);
      from.on('error', () => to.destroy());
      from.on('close', () => {
        open.delete(from);
        to.destroy();
      });
      from.pipe(to);
    }
  });
  await new Promise(listening => server.listen(0, '127.0.0.1', listening));
  const cut = () => open.forEach(socket => socket.destroy());
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut,
    close: () => {
      cut();
      server.close();
    },
  };
}

module.exports = { proxy };
