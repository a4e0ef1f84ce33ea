use tokenizers::Tokenizer;
#[no_mangle]
pub extern "C" fn x(p: *const u8, n: usize) -> usize {
    let b = unsafe { std::slice::from_raw_parts(p, n) };
    let t = Tokenizer::from_bytes(b).unwrap();
    let e = t.encode("a", true).unwrap();
    let mut env = minijinja::Environment::new();
    minijinja_contrib::add_to_environment(&mut env);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.render_str("a", ()).unwrap().len() + e.get_ids().len()
}
