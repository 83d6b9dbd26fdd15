// Named cases, each with a time limit, one line for each and a closing line that counts them.
'use strict';

const LIMIT_MS = 60_000;
const cases = [];

/** Keeps a case; they run in the order of their definition. */
function test(name, run) {
  cases.push({ name, run });
}

/** Waits until `condition()` gives something true, and returns that. */
async function eventually(what, condition) {
  const end = Date.now() + 30_000;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within 30 s: ${what}`);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}

/** Runs all cases whose name contains `only`, and exits. */
async function main(only = '') {
  let passed = 0;
  let failed = 0;
  for (const { name, run } of cases.filter(({ name }) => name.includes(only))) {
    const began = Date.now();
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not done after ${LIMIT_MS} ms`)), LIMIT_MS);
    });
    try {
      await Promise.race([run(), late]);
      passed += 1;
      console.log(`passed    ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED    ${name}: ${String(error).replace(/\s+/g, ' ').slice(0, 600)}`);
      console.error(error);
    } finally {
      clearTimeout(timer);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed || !passed ? 1 : 0);
}

module.exports = { test, eventually, main };
